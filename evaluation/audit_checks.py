"""The auditor's checks that need no model. A check is a function from `Audited` to a `Fault`, or None.

To add one: write it, append it to CHECKS, and plant its fault in `tests/evaluation/test_audit_faults.py`.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

from evaluation.audit_masks import environment, model_tokens, trained_at_all, turn_ends
from evaluation.audit_texts import history, prompt, special_tokens, text_of_ids
from evaluation.audit_values import alignment, lengths, mask_values, present, reward, status, values, vocabulary
from evaluation.audited import Audited, Fault
from evaluation.verdict_table import Finding, Mark, Row


class Check(NamedTuple):
    """A row of the table, named after its function: the worst fault of all samples, and what to do about it."""

    group: str
    look: Callable[[Audited], Fault | None]
    remedy: str

    @property
    def name(self) -> str:
        return self.look.__name__.replace("_", " ")


SHAPE, MASK, SCORES, TEXT = "shape", "mask", "scores", "text"
CHECKS = (
    Check(SHAPE, lengths, "let one function append ids, mask and log-probabilities together"),
    Check(SHAPE, mask_values, "set it to 1 for the model's tokens and to 0 for all others"),
    Check(SHAPE, vocabulary, "take the ids from the engine, and the tokenizer from the model it serves"),
    Check(SHAPE, status, "set TRUNCATED if the rollout ran out of tokens or turns"),
    Check(SHAPE, reward, "reward every sample, discarded ones with 0.0"),
    Check(MASK, trained_at_all, "set remove_sample if this is intended"),
    Check(MASK, prompt, "response_length must count the response's tokens only"),
    Check(MASK, model_tokens, "set the mask to 1 for every token that the model sampled"),
    Check(MASK, turn_ends, "keep and train the engine's last token, or it never learns to stop"),
    Check(MASK, environment, "set the mask to 0 for tokens that the model did not write"),
    Check(SCORES, values, "take them from the engine's reply: meta_info.output_token_logprobs"),
    Check(SCORES, present, "never fill in 0.0: it claims that the token was certain"),
    Check(SCORES, alignment, "output_token_logprobs holds (log-probability, id, text) of the same token"),
    Check(TEXT, text_of_ids, "decode the text from the stored ids"),
    Check(TEXT, special_tokens, "encode template text with its special tokens"),
    Check(TEXT, history, "send ids, not text; set --sent if you know which was sent, or measure it with --model"),
)


class Audit:
    """Checks samples one by one; `rows` gives the verdicts so far."""

    def __init__(self) -> None:
        self.samples = 0
        self.tokens = self.trained = 0
        self.known = Counter[str]()  # samples by how the model's tokens are known
        self._faults: defaultdict[tuple[Check, Mark], list[str]] = defaultdict(list)  # one text per sample
        self._log_probs: Counter[bool] = Counter()  # samples with and without
        self._groups: defaultdict[Any, Counter[Any]] = defaultdict(Counter)  # batch → group → samples
        self._seen: Counter[Any] = Counter()  # batch, group and index of a sample
        self._contents: Counter[Any] = Counter()  # batch, group and a hash of what was sampled

    def add(self, sample: Audited) -> None:
        self.samples += 1
        self.known[sample.known_by] += 1
        if not sample.misfits:
            self.tokens += sample.length
            self.trained += sum(map(len, sample.trained))
        for check in CHECKS:
            if fault := _look(check, sample):
                text = fault.text if fault.mark == "–" else f"{fault.text} ({sample.where})"
                self._faults[check, fault.mark].append(text)
        group, index = sample.fields.get("group_index"), sample.fields.get("index")
        if not sample.discarded:
            self._log_probs[sample.log_probs is not None] += 1
            self._contents[sample.batch, group, hash((*sample.tokens, *(sample.log_probs or ())))] += 1
        self._groups[sample.batch][group] += 1
        if index is not None:
            self._seen[sample.batch, group, index] += 1

    def rows(self) -> Iterator[Row]:
        """One row per check; in each group, checks across samples come last."""
        together = [Row(SHAPE, "groups", self._group_sizes()), Row(SHAPE, "duplicates", self._duplicates())]
        if len(self._log_probs) > 1:
            found = f"{self._log_probs[False]:,} of {self.samples:,} samples have none, but the others do"
            finding = Finding("✗", found, "slime needs them for all samples or for none")
            together.append(Row(SCORES, "all or none", finding))
        for group, checks in groupby(CHECKS, key=lambda check: check.group):
            yield from (Row(group, check.name, self._worst(check)) for check in checks)
            yield from (row for row in together if row.group == group)

    def _worst(self, check: Check) -> Finding:
        """The worst result of all samples, with its first sample."""
        for mark in ("✗", "!"):
            if faults := self._faults[check, mark]:
                found = f"{len(faults):,} of {self.samples:,} samples; the first: {faults[0]}"
                return Finding(mark, found, check.remedy)
        unknown = self._faults[check, "–"]
        if len(unknown) == self.samples:
            return Finding("–", unknown[0] if unknown else "no samples")
        rest = f"; unknown for {len(unknown):,} others: {unknown[0]}" if unknown else ""
        return Finding("✓", f"{self.samples - len(unknown):,} samples{rest}")

    def _group_sizes(self) -> Finding:
        sizes = [Counter(groups.values()) for groups in self._groups.values()]
        if all(None in groups for groups in self._groups.values()):
            return Finding("–", "no sample has a `group_index`")
        if uneven := next((counts for counts in sizes if len(counts) > 1), None):
            listed = ", ".join(f"{count:,} of {size}" for size, count in sorted(uneven.items()))
            found = f"groups of one batch differ in size: {listed}"
            return Finding("✗", found, "slime treats neighbouring samples as a group")
        return Finding("✓", f"{sum(map(len, self._groups.values())):,} groups, of one size in each batch")

    def _duplicates(self) -> Finding:
        if twice := sum(count - 1 for count in self._seen.values()):
            (_, group, index), _ = self._seen.most_common(1)[0]
            first = f"index {index}" if group is None else f"index {index} of group {group}"
            return Finding("✗", f"{twice:,} samples appear twice; the first: {first}", "write each sample once")
        alike = sum(count for count in self._contents.values() if count > 1)
        if alike > self.samples / 2:
            found = f"{alike:,} of {self.samples:,} samples equal a sibling, log-probabilities included"
            return Finding("!", found, "give the samples of a group different seeds")
        return Finding("✓", f"{self.samples:,} samples, {alike:,} of them equal a sibling in every token")


def _look(check: Check, sample: Audited) -> Fault | None:
    """A check's result. Samples with inconsistent parts are left to the first check; discarded ones are not trained."""
    if check.look is lengths:
        return check.look(sample)
    if sample.misfits:
        return Fault("its parts do not fit each other", "–")
    if not sample.length or (sample.discarded and check.group in (MASK, TEXT)):
        return None
    return check.look(sample)
