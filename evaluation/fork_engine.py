"""The engine and the retriever that the served viewer uses for forks: `view --serve runs/ --engine URL`."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from evaluation.fork import ForkError, Replacement, fork
from evaluation.options import search_settings
from evaluation.plugin import config_of, find_slime, plugin_args
from evaluation.run_list import Run
from evaluation.viewer_data import Json
from search_rollout.runtime import Runtime, engine_url
from search_rollout.search.passage import Passage

FIXED = {"token_tracking_mode": "manual", "track_log_probs": True, "loss_mask_mode": "strict"}  # ids in, ids out
PATIENCE = {"engine_timeout_s": 120.0, "engine_retries": 1, "search_retries": 1}  # a user is waiting


@dataclass(frozen=True)
class ForkEngine:
    """Forks rollouts with the settings of their run. `search` is None or a value of chat's --search."""

    url: str
    search: str | None
    temperature: float
    max_response_len: int

    def check(self) -> None:
        """Raises ValueError on an address that cannot be used."""
        self._args({})

    async def fork(self, run: Run, tokenizer: Any, fields: Mapping[str, Any], request: Mapping[str, Any]) -> Json:
        """The forked Sample. Raises ForkError, ConfigError, EngineError, and ValueError on a malformed request."""
        turn, replacements = _read(request)
        if self.search is None and any(one.passages is None for one in replacements):
            raise ForkError("Searching needs a retriever: start the viewer with --search local:URL, or edit passages.")
        params = {"temperature": self.temperature, "top_p": 1.0, "top_k": -1, "max_new_tokens": self.max_response_len}
        find_slime()
        args = self._args(run.settings())
        state = SimpleNamespace(tokenizer=tokenizer, aborted=False)  # slime's own is a singleton, for one tokenizer
        runtime = Runtime(engine_url(args), config_of(args), state)
        try:
            return await fork(runtime, args, fields, turn, replacements, params)
        finally:
            await runtime.close()

    def _args(self, settings: Mapping[str, Any]) -> Any:
        search = search_settings(self.search or "none")
        search.pop("max_turns", None)  # "none" is a retriever that is never asked here
        return plugin_args(
            model="",
            engine_url=self.url,
            settings={**settings, **FIXED, **PATIENCE, **search},
            temperature=self.temperature,
            max_response_len=self.max_response_len,
        )


def _read(request: Mapping[str, Any]) -> tuple[int, list[Replacement]]:
    """Parses a request's JSON into turn and replacements. Raises ValueError."""
    try:
        replacements = []
        for one in request["searches"]:
            found = one["passages"]
            passages = None if found is None else [Passage(_text(title), _text(text)) for title, text in found]
            replacements.append(Replacement(_text(one["query"]), passages))
        return int(request["turn"]), replacements
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The request to fork is malformed: {error!r}.") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value
