"""A page's bytes as text, without markup and in the right characters, and the passage of it that a snippet is from."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st
from web_fakes import article

from search_rollout.search.page_reader import PASSAGE_WORDS, best_passage, decode, main_text, read_page

CHINESE = "内罗毕是肯尼亚的首都，也是该国最大的城市，人口约四百万。城市位于海拔一千七百米的高原上。"
FRENCH = "Le célèbre café de la forêt était fermé à Noël, où il a neigé très tôt."


@pytest.mark.parametrize(
    ("charset", "header", "declared", "text"),
    [
        ("gb2312", "gb2312", None, CHINESE),
        ("gb18030", "gb2312", None, CHINESE + "镕㐀"),  # called by the narrower name, as on much of the web
        ("gb2312", None, "gb2312", CHINESE),
        ("gb2312", None, None, CHINESE),  # by chardet
        ("gb2312", "utf-8", None, CHINESE),  # the header is wrong
        ("latin-1", "iso-8859-1", None, FRENCH),
        ("cp1252", "iso-8859-1", None, FRENCH + " “cité”"),
        ("latin-1", None, "latin-1", FRENCH),
        ("latin-1", None, None, FRENCH),
        ("utf-8", None, None, FRENCH + CHINESE),
        ("utf-8", "no-such-charset", "rot13", FRENCH),
        ("utf-16", None, None, FRENCH),  # by its byte order mark
    ],
)
def test_each_charset_is_read_by_header_page_or_guess(charset, header, declared, text):
    assert text in decode(article(text * 3, charset=declared).encode(charset), header)


def test_a_few_broken_bytes_do_not_change_the_charset():
    body = article(FRENCH * 9).encode().replace(b"ferm", b"fe\xffrm", 2)
    assert decode(body, "utf-8").count("célèbre") == 9
    assert decode(article(FRENCH * 9).encode()[:-300] + b"\xc3", None).count("\ufffd") == 1  # cut within a character


@given(
    st.binary(max_size=200), st.none() | st.sampled_from(["utf-8", "utf-16", "gb2312", "idna", "hex", "undefined", ""])
)
def test_any_bytes_are_decoded(body, charset):
    assert isinstance(decode(body, charset), str)


def test_the_text_of_a_page_has_neither_markup_nor_menus():
    text = main_text(article("Nairobi is <b>the</b> capital of Kenya. " * 5, "It lies &lt;high&gt;."))
    assert text is not None and "Nairobi is the capital" in text
    assert not any(word in text for word in ("<p", "<b", "SCRIPT", "MENU", "FOOTER"))


def test_plain_text_is_unchanged_but_html_labelled_as_text_is_parsed():
    assert main_text(" just words ") == "just words"
    assert "<" not in (main_text("<html><body><p>Only a paragraph of text, no more.</p></body></html>") or "")
    assert main_text("") is None


@pytest.mark.parametrize(
    "page", ["<html></html>", "<div>" * 5000, "<html><script>x()</script></html>", "<p>" + "\0" * 9999]
)
def test_a_page_without_text_has_no_passage(page):
    assert read_page(page.encode(), None, "capital of Kenya") is None


FILLER = "Some other words stand here so that there is a long text around. "
SENTENCE = "The capital of Kenya is Nairobi, on the river of that name. "


def test_the_passage_is_the_part_around_the_snippet():
    found = best_passage(FILLER * 50 + SENTENCE + FILLER * 50, "capital of Kenya is Nairobi ...")
    assert found is not None and SENTENCE.strip() in found
    assert found.startswith("Some other") and found.endswith("around.")
    assert len(found.split()) <= PASSAGE_WORDS


def test_a_short_text_comes_whole():
    text = "First things first. " + SENTENCE + "The end."
    assert best_passage(text, "capital of Kenya") == text


def test_a_text_that_is_not_about_the_snippet_has_no_passage():
    snippet = "The capital of Kenya is Nairobi"
    assert best_passage("Please log in to read on. We use cookies.", snippet) is None
    assert best_passage("Log in to read news of Kenya.", snippet) is None  # two words of six
    assert best_passage(FILLER, "") is None and best_passage("", "x") is None


def test_a_passage_is_found_in_text_without_full_stops_and_without_spaces():
    words = " ".join(f"w{n}" for n in range(1000))
    found = best_passage(words, "w500 w501")
    assert found is not None and "w500 w501" in found and len(found.split()) <= PASSAGE_WORDS
    found = best_passage("天气很好。" * 200 + CHINESE + "天气很好。" * 200, "肯尼亚的首都")
    assert found is not None and "肯尼亚的首都" in found and len(found) < 300


@given(st.text(max_size=300), st.text(max_size=40))
def test_no_text_breaks_the_choice_and_the_passage_is_bounded(text, hint):
    found = best_passage(text * 20, hint)
    assert found is None or 0 < len(found) <= 2000


def test_a_byte_order_mark_wins_over_the_header():
    assert decode(codecs.BOM_UTF8 + "é".encode(), "latin-1") == "é"
