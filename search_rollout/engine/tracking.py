"""Three ways to get an engine's ids; all produce the same trajectory.

    manual          ids go to `/generate`, and ids come back
    router_radix    text goes to a token router's `/generate`; its record is fetched once, by text
    router_handler  messages go to a token router's `/v1/chat/completions`; its record is fetched once, by messages

A router is not trusted: every reply carries its ids and the number of tokens the engine read, and the record fetched at
the end must consist of the replies and the environment's additions.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from search_rollout.config import ConfigError
from search_rollout.engine.client import EngineClient, GrowingIds
from search_rollout.engine.sglang_reply import EngineError, Reply
from search_rollout.http_client import RequestFailed
from search_rollout.protocols.base import Message
from search_rollout.trajectory import Trajectory

NAMESPACE_HEADER = "X-Search-R1-Trajectory"  # siblings of a group may say the same in different ids
RECORD_PATHS = {"router_radix": "/retrieve_from_text", "router_handler": "/retrieve_from_messages_template"}
_LOG_PROB_TOLERANCE = 1e-5  # a record may have passed through 32-bit numbers


class RouterMismatch(EngineError):
    """The router's record differs from what its replies carried; the message says where."""


class Tracking:
    """How one rollout talks to the engine: by ids (manual), unless a router mode overrides it."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._ids = GrowingIds()

    async def complete(
        self, trajectory: Trajectory, params: Mapping[str, Any], headers: Mapping[str, str], aborted: Callable[[], bool]
    ) -> Reply:
        """The engine's reply to the trajectory so far.

        Raises EngineError; RouterMismatch if the engine read another number of ids than the trajectory has.
        """
        reply = await self._ask(trajectory, params, headers, aborted)
        sent = trajectory.length
        if reply.prompt_tokens not in (None, sent) and not (reply.finish == "abort" and aborted()):
            raise RouterMismatch(f"The engine read {reply.prompt_tokens} ids where the trajectory has {sent}.")
        if reply.finish != "abort":  # a router keeps no such reply
            self._keep(reply)
        return reply

    async def verify(self, trajectory: Trajectory, headers: Mapping[str, str]) -> None:
        """Raises RouterMismatch if the finished trajectory is not what the router recorded."""
        recorded = self._recorded()
        if recorded is None:
            return
        path, body = recorded
        try:
            difference = _difference(await self._engine.post(path, body, headers), trajectory)
        except RequestFailed as failure:
            raise RouterMismatch(f"The router has no record of the trajectory: {failure}") from failure
        except (KeyError, TypeError, AttributeError) as error:
            raise RouterMismatch(f"The router's record is not in the form of {path}: {error!r}") from error
        if difference:
            raise RouterMismatch(f"The router's record differs from its replies: {difference}")

    async def _ask(
        self, trajectory: Trajectory, params: Mapping[str, Any], headers: Mapping[str, str], aborted: Callable[[], bool]
    ) -> Reply:
        body = {"sampling_params": params, **_log_prob_fields(trajectory)}
        return await self._engine.generate(body, headers, aborted, self._ids.as_json(trajectory.ids))

    # What a router keeps besides; here nothing: the trajectory is made of the replies.

    def _keep(self, reply: Reply) -> None:
        """Takes note of what the model said."""

    def tell(self, message: Message) -> None:
        """Takes note of what the environment says before the next reply."""

    def _recorded(self) -> tuple[str, dict[str, Any]] | None:
        """The request for the router's record up to the last reply: path and body."""
        return None

    def state(self) -> dict[str, Any]:
        """The state besides the trajectory, up to the last turn that was not aborted, as JSON values."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""


class RadixTracking(Tracking):
    """Sends all text, as the router knows it."""

    def __init__(self, engine: EngineClient, prompt: str) -> None:
        super().__init__(engine)
        self._text = prompt
        self._known = ""  # the text up to the last reply

    async def _ask(
        self, trajectory: Trajectory, params: Mapping[str, Any], headers: Mapping[str, str], aborted: Callable[[], bool]
    ) -> Reply:
        body = {"text": self._text, "sampling_params": params, **_log_prob_fields(trajectory)}
        return await self._engine.generate(body, headers, aborted)

    def _keep(self, reply: Reply) -> None:
        self._known = self._text = self._text + (reply.text or "")

    def tell(self, message: Message) -> None:
        self._text += message.text

    def _recorded(self) -> tuple[str, dict[str, Any]] | None:
        return (RECORD_PATHS["router_radix"], {"text": self._known}) if self._known else None

    def state(self) -> dict[str, Any]:
        return {"text": self._text, "known": self._known}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._text, self._known = state["text"], state["known"]


class HandlerTracking(Tracking):
    """Sends all messages, the assistant's turns as the router gave them."""

    def __init__(
        self,
        engine: EngineClient,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        template_kwargs: Mapping[str, Any],
    ) -> None:
        super().__init__(engine)
        self._messages = [dict(message) for message in messages]
        self._known = 0  # messages up to the last reply
        self._shared = {"tools": list(tools), "chat_template_kwargs": dict(template_kwargs)}

    async def _ask(
        self, trajectory: Trajectory, params: Mapping[str, Any], headers: Mapping[str, str], aborted: Callable[[], bool]
    ) -> Reply:
        body = {"messages": self._messages, **self._shared, **_chat_fields(params, trajectory)}
        return await self._engine.chat(body, headers, aborted)

    def _keep(self, reply: Reply) -> None:
        if reply.message is None:
            raise EngineError("The router's chat completion has no message.")
        self._messages.append(reply.message)
        self._known = len(self._messages)

    def tell(self, message: Message) -> None:
        """Adds the messages; a tool message gets the id of its call if there is one."""
        calls = self._messages[-1].get("tool_calls") or []
        for place, one in enumerate(message.messages):
            call_id = {"tool_call_id": calls[place]["id"]} if one["role"] == "tool" and place < len(calls) else {}
            self._messages.append({**one, **call_id})

    def _recorded(self) -> tuple[str, dict[str, Any]] | None:
        body = {"messages": self._messages[: self._known], **self._shared}
        return (RECORD_PATHS["router_handler"], body) if self._known else None

    def state(self) -> dict[str, Any]:
        return {"messages": list(self._messages), "known": self._known}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._messages, self._known = list(state["messages"]), state["known"]


async def check_router(engine: EngineClient, mode: str) -> None:
    """Raises ConfigError if the router has no record to fetch for this TOKEN_TRACKING_MODE."""
    path = RECORD_PATHS[mode]
    try:
        await engine.post(path, {"text": ""} if mode == "router_radix" else {"messages": []}, {})
    except RequestFailed as failure:
        if failure.status == 400 and mode == "router_handler":
            return  # as it should: there are no messages
        if failure.status in (400, 404, 405, 422, 501):
            raise ConfigError(
                f"TOKEN_TRACKING_MODE={mode} needs a router with {path}, and the one that slime uses has none "
                f"({failure}). Start `python -m token_router`, and give slime its --sglang-router-ip and "
                "--sglang-router-port."
            ) from failure
        raise EngineError(str(failure)) from failure


def _log_prob_fields(trajectory: Trajectory) -> dict[str, Any]:
    """What a request asks about log-probabilities; those of unscored ids need the position before them as well."""
    fields: dict[str, Any] = {"return_logprob": trajectory.track_log_probs}
    if trajectory.track_log_probs and trajectory.unscored:
        fields["logprob_start_len"] = trajectory.length - trajectory.unscored - 1
    return fields


def _chat_fields(params: Mapping[str, Any], trajectory: Trajectory) -> dict[str, Any]:
    """SGLang's sampling parameters under the names of chat completions; those without one keep their own."""
    names = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "sampling_seed": "seed"}
    fields = {names.get(key, key): value for key, value in params.items()}
    asked = _log_prob_fields(trajectory)
    return {**fields, "logprobs": asked.pop("return_logprob"), **asked}


def _difference(record: Mapping[str, Any], trajectory: Trajectory) -> str | None:
    """Where a record departs from the trajectory up to its last reply; None if nowhere."""
    tail = trajectory.segments[-1].tokens if trajectory.segments[-1].kind != "turn" else 0
    prompt, end = len(trajectory.prompt_ids), len(trajectory.response_ids) - tail
    ids, found = trajectory.ids[: prompt + end], record["tokens"]
    sampled = [int(segment.kind == "turn") for segment in trajectory.segments for _ in range(segment.tokens)]
    mask = [0] * prompt + sampled[:end]
    if len(found) != len(ids):
        return f"{len(found)} tokens, {len(ids)} expected"
    if found != ids:
        place = next(place for place, pair in enumerate(zip(found, ids, strict=True)) if pair[0] != pair[1])
        return f"token {place} is {found[place]}, {ids[place]} expected"
    if list(record["loss_mask"]) != mask:
        return f"{sum(record['loss_mask'])} sampled tokens at wrong positions, or not {sum(mask)}"
    if trajectory.log_probs is not None and not trajectory.simple_mask:
        known, recorded = [0.0] * prompt + trajectory.log_probs[:end], record["rollout_logp"]
        if recorded is None or len(recorded) != len(known):
            return "log-probabilities are missing"
        if any(abs(one - other) > _LOG_PROB_TOLERANCE for one, other in zip(recorded, known, strict=True)):
            return "log-probabilities have other values"
    return None
