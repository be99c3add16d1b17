"""Finds the passage around a search result's snippet in a page's bytes. Run as a program, it is a worker:

    python -m search_rollout.search.page_reader     requests on stdin, answers on stdout; see `main`

It needs `trafilatura` and `chardet`. It runs in its own process so that it can be killed: a page may hold anything.
"""

import codecs
import itertools
import json
import logging
import os
import re
import resource
import sys
from collections import Counter

import chardet
import trafilatura

PASSAGE_WORDS = 120  # a passage of the Wikipedia corpus, 100 words, plus a sentence
PASSAGE_CHARACTERS = 2000  # limits passages whose "words" are very long
PIECE_WORDS = 40  # longer sentences are split
SHARED = 0.5  # a page with fewer of the snippet's words is not the one searched for: a login page, a notice
CHARDET_BYTES = 2**16
MISREAD = 0.01  # with a larger share of undecodable characters, the charset is wrong
MEMORY_BYTES = 2**31  # address space of a worker

_CJK = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af"  # written without spaces: each sign counts as a word
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_HTML = re.compile(r"<\s*(?:!doctype|html|head|body|div|p|script)\b", re.IGNORECASE)
_DECLARED = re.compile(rb"(?:charset|encoding)\s*=\s*[\"']?\s*([\w.:-]{2,30})", re.IGNORECASE)
_CHARSET = re.compile(r"(?:utf|iso|latin|windows|cp|gb|hz|big5|euc|shift|sjis|johab|koi8|mac|tis|us-ascii|ascii)", re.I)
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_WIDER = {  # what these names mean on the web
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "gb2312": "gb18030",
    "gbk": "gb18030",
}


def read_page(body: bytes, charset: str | None, hint: str) -> str | None:
    """The passage nearest to `hint`; None if the page has none that is near. `charset` comes from the header."""
    text = main_text(decode(body, charset))
    return best_passage(text, hint) if text else None


def decode(body: bytes, charset: str | None) -> str:
    """Decodes bytes by their byte order mark, else by the first charset that fits: header, page, UTF-8, chardet."""
    for mark, codec in _MARKS:
        if body.startswith(mark):
            return body.decode(codec, "replace")
    declared = _DECLARED.search(body, 0, 2048)
    for name in (charset, declared[1].decode("ascii", "replace") if declared else None, "utf-8"):
        text = _decode_by(name, body)
        if text is not None and text.count("\ufffd") <= MISREAD * len(text):
            return text
    guess = chardet.detect(body[:CHARDET_BYTES])["encoding"]
    return _decode_by(guess, body) or body.decode("utf-8", "replace")


def _decode_by(name: str | None, body: bytes) -> str | None:
    if not name or not _CHARSET.match(name):  # some of Python's codecs are not charsets, and slow
        return None
    try:
        known = codecs.lookup(name).name
        return body.decode(_WIDER.get(known, known), "replace")
    except (LookupError, ValueError):
        return None


def main_text(page: str) -> str | None:
    """The text of an HTML page without menus and notices; plain text is returned unchanged. Never markup."""
    if _HTML.search(page):
        return trafilatura.extract(page, include_comments=False)
    return page.strip() or None


def best_passage(text: str, hint: str) -> str | None:
    """The run of whole sentences, at most `PASSAGE_WORDS` words, that shares the most words with `hint`.

    Among equals it returns the middle one, to have context on both sides; None if none shares enough.
    """
    wanted = set(_words(hint))
    pieces = _pieces(text)
    words = [_words(piece) for piece in pieces]
    found: Counter[str] = Counter()
    windows: list[tuple[int, int, int]] = []  # shared words, first piece, end (exclusive)
    size = end = 0
    for start in range(len(pieces)):
        while end < len(pieces) and (end == start or size + len(words[end]) <= PASSAGE_WORDS):
            found.update(word for word in words[end] if word in wanted)
            size += len(words[end])
            end += 1
        windows.append((sum(map(bool, found.values())), start, end))
        if end == len(pieces):
            break
        found.subtract(word for word in words[start] if word in wanted)
        size -= len(words[start])
    most = max((shared for shared, _, _ in windows), default=0)
    if not most or most < SHARED * len(wanted):
        return None
    best = [place for place, (shared, _, _) in enumerate(windows) if shared == most]
    run = [place for offset, place in enumerate(best) if place == best[0] + offset]
    _, start, end = windows[run[len(run) // 2]]
    return " ".join(pieces[start:end])[:PASSAGE_CHARACTERS].strip()


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _pieces(text: str) -> list[str]:
    """The text's sentences; those longer than `PIECE_WORDS` words are split."""
    pieces = []
    for sentence in _SENTENCE_END.split(text):
        starts = [word.start() for word in _WORD.finditer(sentence)][PIECE_WORDS::PIECE_WORDS]
        cuts = [0, *starts, len(sentence)]
        pieces += [sentence[low:high].strip() for low, high in itertools.pairwise(cuts)]
    return [piece for piece in pieces if piece]


def main() -> None:
    """Answers requests until stdin closes, which happens when the parent exits.

    A request: one line of JSON, `{"bytes": n, "charset": … or null, "hint": …}`, and n bytes, the page. An answer: one
    line of JSON, `{"passage": … or null}` or `{"error": …}`.
    """
    os.nice(10)  # the rollouts go first
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable()
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        body = sys.stdin.buffer.read(request["bytes"])
        try:
            answer = {"passage": read_page(body, request["charset"], request["hint"])}
        except Exception as error:  # a parser may fail in any way on a web page; the caller gets the error
            answer = {"error": repr(error)[:200]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
