"""slime's Sample, with the fields of a text rollout."""

from dataclasses import dataclass, field
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

    def get_reward_value(self, args: Any) -> float:
        """The reward, or the one of several that --reward-key names."""
        return self.reward[args.reward_key] if args.reward_key else self.reward  # type: ignore[index,return-value]

    def to_dict(self) -> dict[str, Any]:
        """As slime writes it into debug dumps."""
        return {**self.__dict__, "status": self.status.value}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "Sample":
        """The inverse of `to_dict`."""
        return Sample(**{**data, "status": Sample.Status(data["status"])})
