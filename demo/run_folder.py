"""The folder of one run: what happened, line by line, as it happens, so that an interrupted run keeps it all."""

import itertools
import json
import math
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from search_rollout.protocols.chat_template import decode
from search_rollout.samples.record import record_of


class RunFolder:
    """`<runs>/demo-<time>-seed<seed>/`, made new."""

    def __init__(self, runs: Path, seed: int) -> None:
        name = f"demo-{time.strftime('%Y%m%d-%H%M%S')}-seed{seed}"
        runs.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            self.path = runs / (name if number == 1 else f"{name}-{number}")
            try:
                self.path.mkdir()
                break
            except FileExistsError:  # a run of the same second
                continue

    def append(self, file: str, record: dict[str, Any]) -> None:
        """Adds one line of JSON to a file of the folder."""
        with (self.path / file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")

    def keep_evaluation(self, rows: Iterable[dict[str, Any]], settings: dict[str, Any], corpus: Path) -> None:
        """What a later evaluation needs beside the models: eval.jsonl, settings.yaml and corpus.jsonl."""
        for row in rows:
            self.append("eval.jsonl", row)
        lines = (f"{key}: {json.dumps(value)}\n" for key, value in settings.items())
        (self.path / "settings.yaml").write_text("".join(lines), encoding="utf-8")
        shutil.copyfile(corpus, self.path / "corpus.jsonl")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replaces summary.json."""
        (self.path / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")

    def append_trajectory(self, phase: str, sample: Any, tokenizer: Any) -> None:
        """Adds a rewarded slime Sample to trajectories.jsonl, token by token, for the report."""
        record = record_of(sample)
        assert record is not None  # ours
        begin = len(sample.tokens) - sample.response_length
        self.append(
            "trajectories.jsonl",
            {
                "phase": phase,
                "question": sample.metadata["question"],
                "gold": sample.label["ground_truth"]["target"],
                "prompt": decode(tokenizer, sample.tokens[:begin]),
                "tokens": [tokenizer.decode([token]) for token in sample.tokens[begin:]],
                "loss_mask": sample.loss_mask,
                "log_probs": sample.rollout_log_probs,
                "reward": sample.reward,
                "reward_parts": record.score or {},
                "stop_reason": record.stop.value,
                "status": sample.status.value,
                "searches": [
                    {
                        "query": result.query,
                        "error": result.error,
                        "documents": [{"title": passage.title, "text": passage.text} for passage in result.passages],
                    }
                    for result in record.searches
                ],
            },
        )


def paired_gain(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    """Mean of after - before over the same questions, with its 95 % interval (normal approximation)."""
    differences = [int(late) - int(early) for early, late in zip(before, after, strict=True)]
    n = len(differences)
    mean = sum(differences) / n
    variance = sum((difference - mean) ** 2 for difference in differences) / max(n - 1, 1)
    margin = 1.96 * math.sqrt(variance / n)
    return {"exact_match": round(mean, 4), "ci95": [round(mean - margin, 4), round(mean + margin, 4)]}
