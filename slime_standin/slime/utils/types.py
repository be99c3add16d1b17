"""slime's Sample, with the fields of a text rollout."""

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any


@dataclass
class Sample:
    """One prompt, what was generated for it, and what training needs of it."""

    group_index: int | None = None
    index: int | None = None
    prompt: str | list[dict[str, str]] = ""
    tokens: list[int] = field(default_factory=list)  # prompt + response
    apply_chat_template_kwargs: dict = field(default_factory=dict)
    response: str = ""
    response_length: int = 0  # tokens
    label: Any = None
    reward: float | dict[str, Any] | None = None
    loss_mask: list[int] | None = None  # (response_length,)
    weight_versions: list[str] = field(default_factory=list)
    rollout_log_probs: list[float] | None = None  # (response_length,)
    rollout_top_p_token_ids: list[int] | None = None  # what token i was drawn from: ids[offsets[i]:offsets[i + 1]]
    rollout_top_p_token_offsets: list[int] | None = None  # (response_length + 1,)
    remove_sample: bool = False

    class Status(Enum):
        PENDING = "pending"
        COMPLETED = "completed"
        TRUNCATED = "truncated"
        ABORTED = "aborted"
        FAILED = "failed"

    status: Status = Status.PENDING
    metadata: dict = field(default_factory=dict)
    session_id: str | None = None
    non_generation_time: float = 0.0  # seconds

    @dataclass
    class SpecInfo:
        spec_accept_token_num: int = 0
        spec_draft_token_num: int = 0
        spec_verify_ct: int = 0
        completion_token_num: int = 0

        def add(self, meta_info: dict) -> None:
            self.spec_accept_token_num += meta_info.get("spec_accept_token_num", 0)
            self.spec_draft_token_num += meta_info.get("spec_draft_token_num", 0)
            self.spec_verify_ct += meta_info.get("spec_verify_ct", 0)
            self.completion_token_num += meta_info.get("completion_tokens", 0)

    @dataclass
    class PrefixCacheInfo:
        cached_tokens: int = 0
        total_prompt_tokens: int = 0

        def add(self, meta_info: dict) -> None:
            self.cached_tokens += meta_info.get("cached_tokens", 0)
            self.total_prompt_tokens += meta_info.get("prompt_tokens", 0)

    spec_info: SpecInfo = field(default_factory=SpecInfo)
    prefix_cache_info: PrefixCacheInfo = field(default_factory=PrefixCacheInfo)

    def append_response_tokens(
        self,
        args: Any = None,
        *,
        tokens: list[int],
        log_probs: list[float] | None = None,
        trainable: bool = True,
        meta_info: dict | None = None,
        update_terminal_info: bool = True,
    ) -> None:
        """Appends a stretch of the response with its mask, log-probabilities and top-p replay data.

        Raises ValueError if they do not fit each other, or what is there already.
        """
        if (log_probs is not None) != trainable or (log_probs is not None and len(log_probs) != len(tokens)):
            raise ValueError("log_probs do not fit the tokens")
        if update_terminal_info:
            raise NotImplementedError("the stand-in leaves the status to its caller")
        self.tokens += tokens
        self.response_length += len(tokens)
        self.loss_mask = (self.loss_mask or []) + [int(trainable)] * len(tokens)
        self.rollout_log_probs = (self.rollout_log_probs or []) + (log_probs or [0.0] * len(tokens))
        ids = (meta_info or {}).get("top_p_token_ids")
        offsets = (meta_info or {}).get("top_p_token_offsets")
        if ids is not None and offsets is not None:
            if len(offsets) != len(tokens) + 1 or offsets[-1] != len(ids):
                raise ValueError("top-p offsets do not fit the tokens")
            before = self.rollout_top_p_token_ids or []
            self.rollout_top_p_token_ids = before + ids
            self.rollout_top_p_token_offsets = (self.rollout_top_p_token_offsets or [0]) + [
                offset + len(before) for offset in offsets[1:]
            ]
        elif not trainable and self.rollout_top_p_token_offsets is not None:
            self.rollout_top_p_token_offsets += self.rollout_top_p_token_offsets[-1:] * len(tokens)
        lengths = {len(self.loss_mask), len(self.rollout_log_probs), self.response_length}
        if self.rollout_top_p_token_offsets is not None:
            lengths.add(len(self.rollout_top_p_token_offsets) - 1)
        if len(lengths) > 1:
            raise ValueError("the parts of the response have different lengths")

    def to_dict(self) -> dict[str, Any]:
        """As slime writes it into debug dumps."""
        counters = {"spec_info": asdict(self.spec_info), "prefix_cache_info": asdict(self.prefix_cache_info)}
        return {**self.__dict__, "status": self.status.value, **counters}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "Sample":
        """The inverse of `to_dict`."""
        counters = {
            "spec_info": Sample.SpecInfo(**data["spec_info"]),
            "prefix_cache_info": Sample.PrefixCacheInfo(**data["prefix_cache_info"]),
        }
        return Sample(**{**data, "status": Sample.Status(data["status"]), **counters})
