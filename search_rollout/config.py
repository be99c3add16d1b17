"""Every setting of a rollout, read once and checked: the frozen `SearchConfig`.

Sources, later ones win: `SEARCH_R1_CONFIGS` (in `generate_with_search.py`) < environment < slime's
`--custom-config-path` YAML, whose keys slime puts on `args`. `ENVIRONMENT` lists the variables with special names; any
other key is `SEARCH_R1_<KEY>` in the environment. No other module reads the environment. A reward preset replaces the
scores of `SEARCH_R1_CONFIGS`; the environment and the YAML still override each score. An API key may also be in the
file named by `<variable>_FILE`, for Ray clusters that do not inherit our environment.
"""

import dataclasses
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from search_rollout.protocols.tool_formats import FORMATS, is_format

logger = logging.getLogger(__name__)

AnswerMetric: TypeAlias = Literal["em", "f1", "sub_em"]
GroupFilter: TypeAlias = Literal["off", "reward", "exact_match"]
PLACEHOLDER_KEY = "YOUR_API_KEY"

ENVIRONMENT = {
    "llm_api_mode": "LLM_API_MODE",
    "search_backend": "SEARCH_BACKEND",
    "token_tracking_mode": "TOKEN_TRACKING_MODE",
    "track_log_probs": "TRACK_LOG_PROBS",
    "loss_mask_mode": "LOSS_MASK_MODE",
    "retrieval_server_url": "RETRIEVAL_SERVER_URL",
    "retrieval_api_key": "RETRIEVAL_API_KEY",
    "google_api_key": "GOOGLE_API_KEY",
    "search_failure_mode": "SEARCH_FAILURE_MODE",
    "search_cache": "SEARCH_CACHE",
    "search_cache_mode": "SEARCH_CACHE_MODE",
    "search_budget": "SEARCH_BUDGET",
    "reward_preset": "REWARD_PRESET",
    "group_filter": "GROUP_FILTER",
    "collapse_guard": "COLLAPSE_GUARD",
}


class RewardScores(NamedTuple):
    """The settings of the reward, described in `qa_em_format.score_trajectory`."""

    answer_metric: AnswerMetric = "em"
    format_score: float = 0.2
    final_format_score: float = 0.0
    retrieval_score: float = 0.0
    no_search_penalty: float = 0.0


REWARD_PRESETS = {
    "default": RewardScores(),  # or the scores in SEARCH_R1_CONFIGS
    "paper": RewardScores(format_score=0.0),  # pure exact match
    "paper_v03": RewardScores(final_format_score=0.1),  # as in the experiments with a format reward
    "f1": RewardScores(answer_metric="f1"),
    "sub_em": RewardScores(answer_metric="sub_em"),
    "retrieval_bonus": RewardScores(retrieval_score=0.1),
    "no_search_penalty": RewardScores(no_search_penalty=0.2),
}

CHOICES = {
    "llm_api_mode": ("generate", "chat"),
    "search_backend": ("google", "local"),
    "token_tracking_mode": ("manual", "router_radix", "router_handler"),
    "loss_mask_mode": ("strict", "simple"),
    "search_failure_mode": ("observe", "discard"),
    "search_cache_mode": ("off", "readwrite", "replay"),
    "reward_preset": tuple(REWARD_PRESETS),
    "answer_metric": get_args(AnswerMetric),
    "group_filter": get_args(GroupFilter),
    "collapse_guard": ("warn", "stop", "off"),
}

VALID_PAIRS = {  # (llm_api_mode, token_tracking_mode) -> description
    ("generate", "manual"): "XML tags; ids from each reply",
    ("generate", "router_radix"): "XML tags; ids from the router's radix tree",
    ("chat", "manual"): "OpenAI messages and tools; ids from each reply",
    ("chat", "router_handler"): "OpenAI messages and tools; ids from the router, by messages",
    ("chat", "router_radix"): "works, but loses the structure of messages",
}


class ConfigError(ValueError):
    """A setting is wrong; the message names the setting, its value and the remedy."""


@dataclass(frozen=True)
class SearchConfig:
    """Immutable settings. Build it with `load_config`; the constructor checks what the types alone do not ensure."""

    # The modes of the README's table.
    llm_api_mode: str = "generate"
    search_backend: str = "google"
    token_tracking_mode: str = "manual"
    track_log_probs: bool = True
    loss_mask_mode: str = "strict"
    # Turns and lengths, in engine calls and tokens.
    max_turns: int = 3
    max_context_length: int = 16384  # of prompt and response together
    max_obs_tokens: int = 500
    answer_reserve_tokens: int = 256  # kept free for the model after an observation
    # Tools of chat mode.
    tool_call_format: str = "auto"  # auto: as the tokenizer's chat template writes calls
    max_tool_calls: int = 8  # per turn; also the maximum queries per call
    # Search.
    retrieval_server_url: str = "http://localhost:8000"  # several, separated by commas, share the load
    retrieval_api_key: str = dataclasses.field(default="", repr=False)
    google_api_key: str = dataclasses.field(default=PLACEHOLDER_KEY, repr=False)
    google_endpoint: str = "https://google.serper.dev/search"
    google_gl: str = "us"  # country
    google_hl: str = "en"  # language
    google_full_pages: bool = False  # fetch the pages, instead of reading the snippets
    google_usd_per_1000: float = 1.0  # calls; used only to estimate the cost
    topk: int = 3
    search_concurrency: int = 256
    search_timeout_s: float = 60.0  # one search with all its retries
    search_retries: int = 3
    search_failure_mode: str = "observe"
    search_cache: str = ""  # path of the cache file; empty: no cache
    search_cache_mode: str = "readwrite"
    search_cache_days: float = 30.0  # older answers are searched again
    search_budget: int = 0  # maximum backend calls; 0 = unlimited
    # Engine.
    engine_timeout_s: float = 1800.0  # one attempt, including the wait in the engine's queue
    engine_retries: int = 8
    # Reward; all four scores at 0 give pure exact match. `load_config` fills them in from the preset.
    reward_preset: str = "default"
    answer_metric: AnswerMetric = RewardScores().answer_metric
    format_score: float = RewardScores().format_score
    final_format_score: float = RewardScores().final_format_score
    retrieval_score: float = RewardScores().retrieval_score
    no_search_penalty: float = RewardScores().no_search_penalty
    # Groups, in slime's --dynamic-sampling-filter-path; "off" trains every group, as the paper does.
    group_filter: GroupFilter = "off"
    group_filter_rounds: int = 10  # drops at most this many times a step's groups, then keeps every group
    # Training.
    collapse_guard: str = "warn"  # reaction if the rollouts' series show a collapse

    def __post_init__(self) -> None:
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                raise ConfigError(_wrong_value(key, getattr(self, key), f"one of {', '.join(allowed)}"))
        if not is_format(self.tool_call_format):
            names = f"one of auto, {', '.join(FORMATS)}, sglang:NAME"
            raise ConfigError(_wrong_value("tool_call_format", self.tool_call_format, names))
        for key in ("max_context_length", "topk", "search_concurrency", "max_tool_calls", "group_filter_rounds"):
            if getattr(self, key) < 1:
                raise ConfigError(_wrong_value(key, getattr(self, key), "a whole number from 1 up"))
        if self.max_obs_tokens < 32:  # the tags and a few words
            raise ConfigError(_wrong_value("max_obs_tokens", self.max_obs_tokens, "a whole number from 32 up"))
        for key in ("max_turns", "answer_reserve_tokens", "search_retries", "engine_retries", "search_budget"):
            if getattr(self, key) < 0:
                raise ConfigError(_wrong_value(key, getattr(self, key), "a whole number from 0 up"))
        for key in ("search_timeout_s", "engine_timeout_s"):
            if getattr(self, key) <= 0:
                raise ConfigError(_wrong_value(key, getattr(self, key), "a number of seconds above 0"))
        for key in ("search_cache_days", "google_usd_per_1000"):
            if getattr(self, key) < 0:
                raise ConfigError(_wrong_value(key, getattr(self, key), "a number from 0 up"))
        for key in ("format_score", "final_format_score", "retrieval_score", "no_search_penalty"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(_wrong_value(key, getattr(self, key), "a number from 0 to 1"))
        for key in ("final_format_score", "retrieval_score"):  # a wrong answer must not earn more than a right one
            if self.format_score + getattr(self, key) > 1:
                raise ConfigError(f"format_score + {key} is {self.format_score + getattr(self, key)}; at most 1.")
        for key in secret_keys():
            check_key(_variable(key), getattr(self, key))
        self._check_modes()
        self._check_backend()

    def _check_modes(self) -> None:
        pair = (self.llm_api_mode, self.token_tracking_mode)
        if pair not in VALID_PAIRS:
            valid = "\n".join(f"  {api} + {tracking}: {use}" for (api, tracking), use in VALID_PAIRS.items())
            raise ConfigError(
                f"Invalid configuration: token_tracking_mode={pair[1]!r} is NOT compatible with "
                f"llm_api_mode={pair[0]!r}. Valid pairs (LLM_API_MODE + TOKEN_TRACKING_MODE):\n{valid}"
            )
        if pair == ("chat", "router_radix"):
            logger.warning("chat + router_radix works but loses the structure of messages; router_handler keeps it.")

    @property
    def retrieval_urls(self) -> list[str]:
        return [url.strip() for url in self.retrieval_server_url.split(",") if url.strip()]

    @property
    def caching(self) -> str:
        """`search_cache_mode`, or "off" without a cache file."""
        return self.search_cache_mode if self.search_cache else "off"

    def _check_backend(self) -> None:
        if self.search_cache_mode == "replay" and not self.search_cache:
            raise ConfigError("SEARCH_CACHE_MODE=replay needs a recording: set SEARCH_CACHE to its file.")
        if self.search_backend == "local":
            self._check_urls("retrieval_server_url", self.retrieval_urls, "RETRIEVAL_API_KEY")
        elif self.search_backend == "google":
            self._check_urls("google_endpoint", [self.google_endpoint], "GOOGLE_API_KEY")
            if self.google_api_key in ("", PLACEHOLDER_KEY) and self.caching != "replay":
                raise ConfigError(
                    "SEARCH_BACKEND=google needs a key: set GOOGLE_API_KEY, from serper.dev, or set "
                    "SEARCH_BACKEND=local and RETRIEVAL_SERVER_URL to your retriever."
                )

    def _check_urls(self, key: str, urls: list[str], key_variable: str) -> None:
        if any("@" in url or "?" in url for url in urls):  # not quoted in the message
            secret = "a password or a query; it would be logged"
            raise ConfigError(f"{_variable(key)} ({key}) holds {secret}: use {key_variable}.")
        if not urls or not all(re.match(r"https?://[^/]", url) for url in urls):
            raise ConfigError(_wrong_value(key, getattr(self, key), "an http:// or https:// URL"))


def load_config(defaults: Mapping[str, Any], environment: Mapping[str, str], args: object) -> SearchConfig:
    """Merges the three sources into a SearchConfig. Raises ConfigError for an unknown key or a bad value."""
    fields = {field.name: field for field in dataclasses.fields(SearchConfig)}
    unknown = sorted(set(defaults) - set(fields))
    if unknown:
        raise ConfigError(f"SEARCH_R1_CONFIGS has unknown keys {unknown}; known are {sorted(fields)}.")
    for name in unknown_variables(environment):
        logger.warning("environment variable %s is not a setting and is ignored", name)
    given: dict[str, Any] = {}
    for key in fields:
        if value := _from_environment(key, environment):
            given[key] = value
        if getattr(args, key, None) is not None:
            given[key] = getattr(args, key)
    preset = str(given.get("reward_preset", defaults.get("reward_preset", "default")))
    scores = REWARD_PRESETS[preset]._asdict() if preset in REWARD_PRESETS and preset != "default" else {}
    values = {**defaults, **scores, **given}
    return SearchConfig(**{key: _convert(key, value, fields[key].type) for key, value in values.items()})


def variables() -> dict[str, str]:
    """The environment variable of each setting, by key."""
    return {field.name: _variable(field.name) for field in dataclasses.fields(SearchConfig)}


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """The environment variables that look like our settings but are not."""
    known = set(variables().values())
    return sorted(name for name in environment if name.startswith("SEARCH_R1_") and name not in known)


def secret_keys() -> list[str]:
    """The settings that must not appear in a log or on a command line."""
    return [field.name for field in dataclasses.fields(SearchConfig) if not field.repr]


def check_key(variable: str, key: str) -> None:
    """Raises ConfigError, without quoting the key, if it cannot be sent in a header."""
    if not re.fullmatch(r"[!-~]*", key):
        raise ConfigError(f"{variable} has invalid characters, such as a space or a line break: copy it again.")


def _variable(key: str) -> str:
    return ENVIRONMENT.get(key, f"SEARCH_R1_{key.upper()}")


def _from_environment(key: str, environment: Mapping[str, str]) -> str:
    """The setting's variable, or for a secret the content of the file `<variable>_FILE`; empty if neither is set."""
    value = environment.get(_variable(key), "").strip()
    path = environment.get(f"{_variable(key)}_FILE", "").strip()
    if value or not path or key not in secret_keys():
        return value
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_variable(key)}_FILE names {path!r}, which cannot be read ({error}).") from error


def _wrong_value(key: str, value: object, allowed: str) -> str:
    return f"{_variable(key)} ({key}) has value {value!r}; it must be {allowed}."


def _convert(key: str, value: Any, kind: Any) -> Any:
    """Converts `value`, a string from the environment or a scalar from YAML, to the field's type."""
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if str(value).lower() not in words:
            raise ConfigError(_wrong_value(key, value, "true or false"))
        return words[str(value).lower()]
    if kind in (str, AnswerMetric, GroupFilter):
        return str(value)
    try:
        number = kind(str(value))
        if math.isfinite(number):
            return number
    except ValueError:
        pass
    raise ConfigError(_wrong_value(key, value, "a whole number" if kind is int else "a number"))
