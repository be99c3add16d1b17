"""The data for repeating a GRPO step's rollouts; `search-r1 demo --keep-steps` saves it in `RUN/steps/STEP/`.

    model/              the step's initial weights, in float32, and the tokenizer
    questions.jsonl     the questions, in the format of the world's files
    trajectories.jsonl  the samples, group by group
    step.json           seed, settings, versions, and the order in which the engine admitted requests

All steps share RUN/searches.sqlite, which holds every search's passages, so a repetition needs no retriever.
"""

import json
import platform
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from demo.world_facts import Question, load_questions, write_jsonl
from evaluation.records import record_of, write_json

SEARCHES = "searches.sqlite"  # in the run's folder


@dataclass(frozen=True)
class KeptStep:
    """A saved step."""

    folder: Path
    seed: int
    samples: int  # per question
    dtype: str
    api_mode: str
    weight_version: str
    order: list[list[int | str]] | None  # of the engine's admissions; None: any order
    machine: dict[str, Any]

    @property
    def questions(self) -> list[Question]:
        """The step's questions. Raises ValueError."""
        return load_questions(self.folder / "questions.jsonl")

    @property
    def trajectories(self) -> list[dict[str, Any]]:
        """The recorded samples, as JSON."""
        return [json.loads(line) for line in (self.folder / "trajectories.jsonl").read_text("utf-8").splitlines()]


def keep(
    run: Path,
    step: int,
    model: PreTrainedModel,
    questions: Iterable[Question],
    groups: Sequence[Sequence[Any]],
    facts: dict[str, Any],
) -> None:
    """Saves a step atomically; `facts` are the fields of KeptStep. Replaces what an interrupted save left."""
    folder = run / "steps" / str(step)
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished / "model")
    shutil.copytree(run / "tokenizer", unfinished / "model", dirs_exist_ok=True)
    write_jsonl(unfinished / "questions.jsonl", map(asdict, questions))
    write_jsonl(unfinished / "trajectories.jsonl", samples_as_json(groups))
    write_json(unfinished / "step.json", facts | {"machine": machine()})
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def samples_as_json(groups: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """slime's Samples as lines of trajectories.jsonl."""
    return [record_of(sample, id=sample.metadata["question_id"]) for group in groups for sample in group]


def kept_steps(run: Path) -> list[int]:
    """The numbers of a run's saved steps."""
    return sorted(int(path.parent.name) for path in run.glob("steps/*/step.json") if path.parent.name.isdecimal())


def load(run: Path, step: int) -> KeptStep:
    """Loads a saved step. Raises ValueError if the run has not saved it."""
    path = run / "steps" / str(step) / "step.json"
    try:
        return KeptStep(path.parent, **json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        kept = ", ".join(map(str, kept_steps(run)))
        raise ValueError(
            f"{run} has kept {f'only the steps {kept}' if kept else 'no steps: its demo ran without --keep-steps'}."
        ) from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error


def machine() -> dict[str, Any]:
    """The machine and software versions that floating-point results depend on."""
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.machine(),
    }
