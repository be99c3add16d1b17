"""What a filter of groups returns."""

from dataclasses import dataclass


@dataclass
class DynamicFilterOutput:
    """Whether a group is trained, and if not, why."""

    keep: bool
    reason: str | None = None
