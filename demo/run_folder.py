"""The folder of one run. Everything is logged immediately, line by line, so an interruption loses nothing."""

import json
import math
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.world_facts import write_jsonl
from evaluation.metrics import scores_of
from evaluation.records import record_of, write_json
from qa_em_format import gold_answers
from search_rollout.protocols.chat_template import decode

LOGS = ("warm_start.jsonl", "steps.jsonl", "evaluation.jsonl", "trajectories.jsonl")


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run: `RunFolder.new` makes one, `RunFolder(path)` is that of an interrupted run."""

    path: Path

    @classmethod
    def new(cls, runs: Path, seed: int) -> "RunFolder":
        """A new folder `<runs>/demo-<time>-seed<seed>/`, with a number if another run started in the same second."""
        name = f"demo-{time.strftime('%Y%m%d-%H%M%S')}-seed{seed}"
        path, number = runs / name, 1
        while True:
            try:
                path.mkdir(parents=True)
                return cls(path)
            except FileExistsError:
                number += 1
                path = runs / f"{name}-{number}"

    def append(self, file: str, record: dict[str, Any]) -> None:
        """Adds one line of JSON to a file of the folder."""
        with (self.path / file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")

    def log_sizes(self) -> dict[str, int]:
        """The sizes of LOGS in bytes, for `truncate_logs`."""
        return {name: (self.path / name).stat().st_size for name in LOGS if (self.path / name).is_file()}

    def truncate_logs(self, sizes: dict[str, int]) -> None:
        """Removes everything logged since `log_sizes` returned these sizes."""
        for name in LOGS:
            if (self.path / name).is_file():
                with (self.path / name).open("ab") as log:
                    log.truncate(sizes.get(name, 0))

    def keep_evaluation(self, rows: Iterable[dict[str, Any]], settings: dict[str, Any], corpus: Path) -> None:
        """Saves what a later evaluation needs besides the models: eval.jsonl, settings.yaml and corpus.jsonl."""
        write_jsonl(self.path / "eval.jsonl", rows)
        lines = (f"{key}: {json.dumps(value)}\n" for key, value in settings.items())
        (self.path / "settings.yaml").write_text("".join(lines), encoding="utf-8")
        shutil.copyfile(corpus, self.path / "corpus.jsonl")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replaces summary.json."""
        write_json(self.path / "summary.json", summary)

    def append_trajectory(self, phase: str, sample: Any, tokenizer: Any) -> None:
        """Adds a rewarded slime Sample to trajectories.jsonl, in evaluations' format, for report, view and compare.

        The demo adds the phase of the run and the texts of the response's tokens.
        """
        begin = len(sample.tokens) - sample.response_length
        golds = gold_answers(sample.label)
        record = record_of(
            sample,
            id=sample.metadata["question_id"],
            data_source="demo",
            scores=scores_of(sample, golds),
            phase=phase,
            gold=golds,
            prompt_text=decode(tokenizer, sample.tokens[:begin]),
            pieces=[tokenizer.decode([token]) for token in sample.tokens[begin:]],
        )
        self.append("trajectories.jsonl", record)


def paired_gain(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    """Mean of after - before over the same questions, with its 95 % interval (normal approximation)."""
    differences = [int(late) - int(early) for early, late in zip(before, after, strict=True)]
    n = len(differences)
    mean = sum(differences) / n
    variance = sum((difference - mean) ** 2 for difference in differences) / max(n - 1, 1)
    margin = 1.96 * math.sqrt(variance / n)
    return {"exact_match": round(mean, 4), "ci95": [round(mean - margin, 4), round(mean + margin, 4)]}
