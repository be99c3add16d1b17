"""Answers of the results API as passages: what stands where, and nothing that comes from an answer breaks it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from web_fakes import NAIROBI

from search_rollout.http_client import RequestFailed
from search_rollout.search.google import Hit, contents, read_answer
from search_rollout.search.passage import Passage


def texts(answer: dict) -> list[str]:
    return [hit.passage.text for hit in read_answer(answer)]


def organic(*results: object) -> dict:
    return {"organic": list(results)}


def test_the_answer_box_comes_first_then_the_knowledge_graph_then_the_results_in_their_order():
    assert read_answer(NAIROBI) == [
        Hit(Passage("Kenya / Capital", "The capital of Kenya is Nairobi.")),
        Hit(
            Passage(
                "Nairobi",
                "Capital of Kenya\nNairobi is a city on the Athi plains.\nArea: 696 km²\nFounded: 1899",
            )
        ),
        Hit(Passage("Nairobi - Wikipedia", "Nairobi has parks."), "https://x.test/n"),
        Hit(Passage("Kenya", "A country."), "https://x.test/k"),
    ]


def test_a_short_answer_precedes_its_snippet_unless_the_snippet_has_it():
    assert texts({"answerBox": {"answer": "42", "snippet": "It is known."}}) == ["42. It is known."]
    assert texts({"answerBox": {"answer": "42"}}) == ["42"]
    assert texts({"answerBox": {"snippetHighlighted": ["forty", "two"]}}) == ["forty two"]


def test_a_snippet_of_one_word_is_kept():
    assert texts(organic({"title": "a", "link": "l", "snippet": "Nairobi"})) == ["Nairobi"]


def test_incomplete_results_keep_their_position_and_their_parts():
    hits = read_answer(
        organic(
            {"title": "no link", "snippet": "one"},
            {"title": "no snippet", "link": "http://b/"},
            {"link": "http://c/", "snippet": "three"},
            {"title": "all", "link": "http://d/", "snippet": "four"},
        )
    )
    assert hits == [
        Hit(Passage("no link", "one"), None),
        Hit(Passage("no snippet", ""), "http://b/"),
        Hit(Passage("http://c/", "three"), "http://c/"),
        Hit(Passage("all", "four"), "http://d/"),
    ]


def test_a_text_that_came_already_is_left_out():
    assert texts({"answerBox": {"snippet": "Same."}, **organic({"snippet": "Same."}, {"snippet": "Other."})}) == [
        "Same.",
        "Other.",
    ]


def test_no_results_are_not_an_error():
    assert read_answer({"searchParameters": {"q": "x"}, "organic": []}) == read_answer({"searchParameters": {}}) == []


@pytest.mark.parametrize("answer", [None, [], "text", {}, {"message": "hello"}, {"organic": "none"}, {"organic": 5}])
def test_an_answer_that_is_not_the_apis_is_an_error(answer):
    with pytest.raises(RequestFailed, match="unexpected answer"):
        read_answer(answer)


def test_a_title_reads_the_same_here_and_over_the_wire():
    title = '"Heroes"\n(album)'
    found = read_answer(organic({"title": title, "snippet": "x"}))[0].passage
    assert found == Passage.from_contents(contents(found.title, found.text))
    assert "\n" not in found.title


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
items = st.fixed_dictionaries({}, optional={key: json_values for key in ("title", "link", "snippet", "answer", "type")})


@given(st.fixed_dictionaries({"organic": st.lists(items | json_values)}, optional={"answerBox": items | json_values}))
def test_no_value_of_an_answer_breaks_it(answer):
    for hit in read_answer(answer):
        assert isinstance(hit.passage.title, str) and isinstance(hit.passage.text, str)
        assert hit.link is None or isinstance(hit.link, str)
