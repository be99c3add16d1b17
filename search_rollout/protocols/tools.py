"""The protocol in OpenAI messages: the model calls tools, and answers in a turn without a call.

The tokenizer's own template renders the prompt with the tools in it. The results of a turn's calls are appended as the
template's own tool messages, rendered alone: earlier turns are never rendered again.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from search_rollout.protocols.base import Action, Message, RolloutProtocol, SearchCall, behind_thought
from search_rollout.protocols.chat_template import decode, strip_end
from search_rollout.protocols.observation import fit, render_result
from search_rollout.protocols.prompts import SEARCH_TOOL
from search_rollout.protocols.tool_formats import ToolCall, ToolFormat
from search_rollout.protocols.xml import TAG, first_action, judged
from search_rollout.search.passage import SearchResult

CORRECTION = "That was not a valid turn. Think briefly, then call a tool or give one answer."
TOOL_RESPONSE_TAGS = ("<tool_response>", "</tool_response>")

# Kinds of mistakes in a call, and what the model reads about each.
MISTAKES = {
    "unreadable_call": "The call cannot be read: write it in the form that the tool instructions show.",
    "unknown_tool": "There is no tool of that name.",
    "wrong_arguments": "The arguments do not fit the tool's schema.",
    "empty_query": "A query must not be empty.",
    "too_many": "Too many queries in one call; it was not run.",
}


class CallReader:
    """Turns calls as the model wrote them into searches, by the tools that it was offered."""

    def __init__(self, tools: Sequence[Mapping[str, Any]], max_calls: int) -> None:
        self._query_names = {tool["function"]["name"]: query_parameter(tool) for tool in tools}
        self._max_calls = max_calls  # of a turn, and queries of a call

    def __call__(self, calls: Sequence[ToolCall]) -> tuple[SearchCall, ...]:
        """Each call; those beyond `max_calls` as one, so that no turn of the model can make the observation long."""
        read = tuple(map(self._read, calls[: self._max_calls]))
        further = len(calls) - len(read)
        message = f"Too many calls in one turn: {further} were not run."
        return (*read, SearchCall(error="too_many", message=message)) if further else read

    def _read(self, call: ToolCall) -> SearchCall:
        """The call as queries, or the first thing that is wrong with it."""
        if call.arguments is None:
            return _mistake("unreadable_call")
        parameter = self._query_names.get(call.name)
        if parameter is None:
            return _mistake("unknown_tool")
        value = call.arguments.get(parameter.name)
        queries = value if parameter.several else [value]
        if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
            return _mistake("wrong_arguments")
        if len(queries) > self._max_calls:
            return _mistake("too_many")
        if not queries or not all(query.strip() for query in queries):
            return _mistake("empty_query")
        return SearchCall(tuple(query.strip() for query in queries))


def parse_turn(turn: str, form: ToolFormat, read_calls: CallReader, *, think_opened: bool = False) -> Action:
    """The action of one model turn, and whether the turn keeps to the format.

    Calls after the last </think> are searches. A turn without calls is the answer: the content of <answer>, or else the
    whole text; if that is empty, the rollout ends without an answer. The format is `<think>…</think>` followed only by
    calls, or by one <answer>. Strip special tokens from the end of the turn first.
    """
    rest = behind_thought(turn, think_opened)
    if rest is None:
        return Action("invalid", fault="open_thought")
    whole = "<think>" + turn if think_opened else turn
    content, calls = form.split(rest)
    if calls:
        return Action("search", calls=read_calls(calls), fault=_fault_of_calls(whole, content))
    if not content.strip():
        return Action("answer", None, fault="no_action")
    action = first_action(content)
    action = judged(action if action.kind == "answer" else Action("answer", content.strip()), whole)
    return action._replace(fault="stray_tag") if any(tag in whole for tag in TOOL_RESPONSE_TAGS) else action


class ToolProtocol(RolloutProtocol):
    """Calls of these tools, and tool messages; the model's own end of turn ends it."""

    def __init__(self, *shared: Any, tools: Sequence[Mapping[str, Any]], form: ToolFormat, max_calls: int) -> None:
        super().__init__(*shared)
        self._form = form.with_tools(tools)
        self._read_calls = CallReader(tools, max_calls)

    def parse(self, turn: str, *, think_opened: bool, ended: bool) -> Action:
        """See `parse_turn`; a turn that its length cut off is invalid."""
        if not ended:
            return Action("invalid", fault="cut_off")
        return parse_turn(strip_end(self._tokenizer, turn), self._form, self._read_calls, think_opened=think_opened)

    def observe(self, action: Action, results: Sequence[SearchResult], last_id: int) -> Message:
        """One tool message per call of the action, together at most `max_obs_tokens`.

        Its kind is "correction" if any call could not be run.
        """
        left = iter(results)
        bodies = [self._tool_text(call, [next(left) for _ in call.queries]) for call in action.calls]

        def messages(bodies: Sequence[str]) -> list[dict[str, Any]]:
            return [{"role": "tool", "content": body} for body in bodies]

        ids, bodies = fit(bodies, lambda bodies: self._appended(messages(bodies), last_id), self._max_obs_tokens)
        text, wrong = decode(self._tokenizer, ids), any(call.error for call in action.calls)
        return Message(ids, text, "correction" if wrong else "observation", tuple(messages(bodies)))

    def correct(self, last_id: int, ended_turn: bool) -> Message:
        message = {"role": "user", "content": CORRECTION}
        ids = self._appended([message], last_id)
        return Message(ids, decode(self._tokenizer, ids), "correction", (message,))

    def _tool_text(self, call: SearchCall, results: Sequence[SearchResult]) -> str:
        if call.error:
            return json.dumps({"error": call.error, "message": call.message})
        texts = [render_result(result, self._neutralise) for result in results]
        if len(texts) == 1:
            return texts[0]
        return "\n\n".join(
            f'Results for "{self._neutralise(result.query)}":\n{text}'
            for result, text in zip(results, texts, strict=True)
        )


class QueryParameter(NamedTuple):
    """Where a tool takes its query, or its queries."""

    name: str
    several: bool


def query_parameter(tool: Mapping[str, Any]) -> QueryParameter | None:
    """The parameter of a tool that holds the query: the first string or array of strings.

    None if it has none; then the tool cannot be run here.
    """
    properties = tool["function"].get("parameters", {}).get("properties", {})
    for name, schema in properties.items():
        if schema.get("type") == "string":
            return QueryParameter(name, False)
        if schema.get("type") == "array" and schema.get("items", {}).get("type", "string") == "string":
            return QueryParameter(name, True)
    return None


def tools_of(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tools that came with a sample, as a list or as JSON; the search tool if none did.

    Raises ValueError if they are not in OpenAI's form.
    """
    tools = metadata.get("tools")
    tools = json.loads(tools or "null") if isinstance(tools, str) else _plain(tools)
    if tools is None or tools == []:
        return [SEARCH_TOOL]
    try:
        tools = [{"type": "function", "function": dict(tool.get("function", tool))} for tool in tools]
        for tool in tools:
            if not isinstance(tool["function"].get("name"), str):
                raise ValueError(f"a tool has no name: {tool}")
            query_parameter(tool)
    except (AttributeError, KeyError, TypeError) as error:  # depending on what is there instead
        raise ValueError(str(error)) from error
    return tools


def _plain(value: Any) -> Any:
    """JSON values as they were before parquet made arrays of lists, and gave all objects of a list the same keys."""
    if hasattr(value, "tolist"):  # a numpy array or scalar
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _fault_of_calls(turn: str, content: str) -> str | None:
    """How a turn violates the format `<think>…</think>` and calls; `content` is the text after the thought."""
    before, _, rest = turn.partition("<think>")
    thought, closed, behind = rest.partition("</think>")
    if not closed:
        return "no_thought"
    if TAG.search(thought) or TAG.search(behind) or any(tag in turn for tag in TOOL_RESPONSE_TAGS):
        return "stray_tag"
    return "stray_text" if before.strip() or content.strip() else None


def _mistake(error: str) -> SearchCall:
    return SearchCall((), error, MISTAKES[error])
