"""Converts an answer of serper.dev's Google results API to passages like the local retriever's."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from search_rollout.http_client import RequestFailed
from search_rollout.search.passage import Passage

_PARTS = {"organic", "answerBox", "knowledgeGraph", "searchParameters"}  # an answer has at least one of these


class Hit(NamedTuple):
    """A passage, and the URL of its page if that may hold more text."""

    passage: Passage
    link: str | None = None


def read_answer(answer: Any) -> list[Hit]:
    """The answer box, knowledge graph and organic results that are present, in this order and without duplicates.

    A result without a snippet has an empty text. Raises RequestFailed if `answer` does not come from the API.
    """
    if not isinstance(answer, dict) or not _PARTS & set(answer):
        raise RequestFailed("The search API sent an unexpected answer: it has neither results nor a query.")
    box, graph, organic = answer.get("answerBox"), answer.get("knowledgeGraph"), answer.get("organic") or []
    if not isinstance(organic, list):
        raise RequestFailed("The search API sent an unexpected answer: `organic` is not a list.")
    hits = [
        *([_answer_box(box)] if isinstance(box, dict) else []),
        *([_knowledge_graph(graph)] if isinstance(graph, dict) else []),
        *(_organic(result) for result in organic if isinstance(result, dict)),
    ]
    first = {hit.passage.text: hit for hit in reversed(hits)}
    return [hit for hit in hits if not hit.passage.text or first[hit.passage.text] is hit]


def contents(title: str, text: str) -> str:
    """Title and text as in a line of the local retriever's corpus."""
    return f'"{title}"\n{text}'


def passage(title: str, text: str) -> Passage:
    """The passage that the local retriever's client would read from these contents."""
    return Passage.from_contents(contents(title, text))


def _answer_box(box: Mapping[str, Any]) -> Hit:
    """The short answer, if present, and its source."""
    answer, snippet = _line(box.get("answer")), _line(box.get("snippet")) or _line(box.get("snippetHighlighted"))
    text = snippet if answer in snippet else f"{answer}. {snippet}" if snippet else answer
    return Hit(passage(_line(box.get("title")) or "Google's answer", text))


def _knowledge_graph(graph: Mapping[str, Any]) -> Hit:
    """The entity's type, its description, and one line per fact."""
    facts = graph.get("attributes")
    lines = [_line(graph.get("type")), _line(graph.get("description"))]
    if isinstance(facts, dict):
        lines += [f"{name}: {value}" for name, value in ((name, _line(fact)) for name, fact in facts.items()) if value]
    return Hit(passage(_line(graph.get("title")), "\n".join(filter(None, lines))))


def _organic(result: Mapping[str, Any]) -> Hit:
    link = result.get("link")
    link = link if link and isinstance(link, str) else None
    return Hit(passage(_line(result.get("title")) or link or "", _line(result.get("snippet"))), link)


def _line(value: Any) -> str:
    """A string, a number or a list of them as one line; empty for anything else."""
    if isinstance(value, list):
        return " ".join(filter(None, map(_line, value)))
    return " ".join(str(value).split()) if type(value) in (str, int, float) else ""
