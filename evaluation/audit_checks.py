"""The auditor's checks that need no model. A check is a function from `Audited` to a `Fault`, or None.

To add one: write it, append it to CHECKS, and plant its fault in `tests/evaluation/test_audit_faults.py`.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

from evaluation import audit_masks, audit_texts, audit_values
from evaluation.audited import Audited, Fault
from evaluation.verdict_table import Finding, Mark, Row

Look: TypeAlias = Callable[[Audited], Fault | None]


class Check(NamedTuple):
    """A row of the table: the worst fault of all samples, and what to do about it."""

    group: str
    name: str
    look: Look
    remedy: str


SHAPE, MASK, SCORES, TEXT = "shape", "mask", "scores", "text"
CHECKS = (
    Check(SHAPE, "lengths", audit_values.lengths, "let one function append ids, mask and log-probabilities together"),
    Check(SHAPE, "mask values", audit_values.mask_values, "set it to 1 for the model's tokens and to 0 for all others"),
    Check(
        SHAPE,
        "vocabulary",
        audit_values.vocabulary,
        "take the ids from the engine, and the tokenizer from the model it serves",
    ),
    Check(SHAPE, "status", audit_values.status, "set TRUNCATED if the rollout ran out of tokens or turns"),
    Check(SHAPE, "reward", audit_values.reward, "reward every sample, discarded ones with 0.0"),
    Check(MASK, "trained at all", audit_masks.something_trained, "set remove_sample if this is intended"),
    Check(MASK, "prompt", audit_texts.prompt, "response_length must count the response's tokens only"),
    Check(MASK, "model tokens", audit_masks.model_tokens, "set the mask to 1 for every token that the model sampled"),
    Check(
        MASK,
        "turn ends",
        audit_masks.turn_ends,
        "keep and train the engine's last token, or it never learns to stop",
    ),
    Check(MASK, "environment", audit_masks.environment, "set the mask to 0 for tokens that the model did not write"),
    Check(SCORES, "values", audit_values.finite, "take them from the engine's reply: meta_info.output_token_logprobs"),
    Check(SCORES, "present", audit_values.present, "never fill in 0.0: it claims that the token was certain"),
    Check(
        SCORES,
        "alignment",
        audit_values.alignment,
        "output_token_logprobs holds (log-probability, id, text) of the same token",
    ),
    Check(TEXT, "text of ids", audit_texts.response_text, "decode the text from the stored ids"),
    Check(TEXT, "special tokens", audit_texts.special_tokens, "encode template text with its special tokens"),
    Check(
        TEXT,
        "history",
        audit_texts.history,
        "send ids, not text; set --sent if you know which was sent, or measure it with --model",
    ),
)


class Tally:
    """The results of one check over all samples."""

    def __init__(self) -> None:
        self.samples = 0
        self.counts: Counter[Mark] = Counter()
        self.firsts: dict[Mark, str] = {}

    def add(self, fault: Fault | None, where: str) -> None:
        """Counts one sample."""
        self.samples += 1
        if fault:
            self.counts[fault.mark] += 1
            self.firsts.setdefault(fault.mark, fault.text if fault.mark == "–" else f"{fault.text} ({where})")

    def finding(self, remedy: str) -> Finding:
        """The worst result, with its first sample."""
        for mark in ("✗", "!"):
            if count := self.counts[mark]:
                return Finding(mark, f"{count:,} of {self.samples:,} samples; the first: {self.firsts[mark]}", remedy)
        unknown = self.counts["–"]
        if unknown == self.samples:
            return Finding("–", self.firsts.get("–", "no samples"))
        rest = f"; unknown for {unknown:,} others: {self.firsts['–']}" if unknown else ""
        return Finding("✓", f"{self.samples - unknown:,} samples{rest}")


class Audit:
    """Checks samples one by one; `rows` gives the verdicts so far."""

    def __init__(self) -> None:
        self.samples = 0
        self.tokens = self.trained = 0
        self.known = Counter[str]()  # samples by how the model's tokens are known
        self._tallies = {check.name: Tally() for check in CHECKS}
        self._log_probs: Counter[bool] = Counter()  # samples with and without
        self._groups: defaultdict[Any, Counter[Any]] = defaultdict(Counter)  # batch → group → samples
        self._seen: Counter[Any] = Counter()  # batch, group and index of a sample
        self._contents: Counter[Any] = Counter()  # batch, group and a hash of what was sampled

    def add(self, sample: Audited) -> None:
        """Checks one sample."""
        self.samples += 1
        self.known[sample.known_by] += 1
        if not sample.misfits:
            self.tokens += sample.length
            self.trained += sum(span.end - span.start for span in sample.trained)
        for check in CHECKS:
            self._tallies[check.name].add(_look(check, sample), sample.where)
        group, index = sample.fields.get("group_index"), sample.fields.get("index")
        if not sample.discarded:
            self._log_probs[sample.log_probs is not None] += 1
            self._contents[sample.batch, group, hash((*sample.tokens, *(sample.log_probs or ())))] += 1
        self._groups[sample.batch][group] += 1
        if index is not None:
            self._seen[sample.batch, group, index] += 1

    def rows(self) -> Iterator[Row]:
        """One row per check; in each group, checks across samples come last."""
        for number, check in enumerate(CHECKS):
            yield Row(check.group, check.name, self._tallies[check.name].finding(check.remedy))
            if check.group != (CHECKS[number + 1].group if number + 1 < len(CHECKS) else ""):
                yield from self._together(check.group)

    def _together(self, group: str) -> Iterator[Row]:
        if group == SHAPE:
            yield Row(SHAPE, "groups", self._group_sizes())
            yield Row(SHAPE, "duplicates", self._duplicates())
        if group == SCORES and len(self._log_probs) > 1:
            found = f"{self._log_probs[False]:,} of {self.samples:,} samples have none, but the others do"
            yield Row(SCORES, "all or none", Finding("✗", found, "slime needs them for all samples or for none"))

    def _group_sizes(self) -> Finding:
        sizes = [Counter(groups.values()) for groups in self._groups.values()]
        if all(None in groups for groups in self._groups.values()):
            return Finding("–", "no sample has a `group_index`")
        if uneven := next((counts for counts in sizes if len(counts) > 1), None):
            listed = ", ".join(f"{count:,} of {size}" for size, count in sorted(uneven.items()))
            return Finding(
                "✗", f"groups of one batch differ in size: {listed}", "slime treats neighbouring samples as a group"
            )
        return Finding("✓", f"{sum(map(len, self._groups.values())):,} groups, of one size in each batch")

    def _duplicates(self) -> Finding:
        twice = sum(count - 1 for count in self._seen.values())
        if twice:
            (_, group, index), _ = self._seen.most_common(1)[0]
            first = f"index {index}" if group is None else f"index {index} of group {group}"
            return Finding("✗", f"{twice:,} samples appear twice; the first: {first}", "write each sample once")
        alike = sum(count for count in self._contents.values() if count > 1)
        if alike > self.samples / 2:
            found = f"{alike:,} of {self.samples:,} samples equal a sibling, log-probabilities included"
            return Finding("!", found, "give the samples of a group different seeds")
        return Finding("✓", f"{self.samples:,} samples, {alike:,} of them equal a sibling in every token")


def _look(check: Check, sample: Audited) -> Fault | None:
    """A check's result. Samples with inconsistent parts are left to the first check."""
    if check.look is audit_values.lengths:
        return check.look(sample)
    if sample.misfits:
        return Fault("its parts do not fit each other", "–")
    return check.look(sample) if sample.length else None
