"""Data preparation, and the scoring of trajectories.

    python -m benchmarks.bench_data_and_reward [--json FILE]

Preparation: oai_format_data_preprocess.py on 50,000 rows in the shape of Search-R1's data set. Scoring: reward_func's
part without slime, on trajectories with 0 to 3 searches of three passages, some with the answer in them; CPU of one
core.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.reporting import ROOT, Report, parser, run
from qa_em_format import score_trajectory
from search_rollout.config import REWARD_PRESETS
from search_rollout.protocols.xml import parse_turn
from search_rollout.samples.record import RolloutRecord, Span, Turn, read_record
from search_rollout.search.passage import Passage, SearchResult
from search_rollout.trajectory import StopReason

ROWS = 50_000
TRAJECTORIES = 2_000


def write_raw(path: Path) -> None:
    """Rows with the columns of Search-R1's data set."""
    instructions = "Reason between two tags, search between two others, answer between the last two. " * 8
    with path.open("w", encoding="utf-8") as lines:
        for number in range(ROWS):
            question = f"in which year was the place of number {number} founded by its first settlers"
            row = {
                "id": f"train_{number}",
                "question": question,
                "golden_answers": [str(number), f"the year {number}"],
                "data_source": "nq" if number % 2 else "hotpotqa",
                "prompt": [{"role": "user", "content": f"{instructions}Question: {question}?"}],
                "ability": "fact-reasoning",
                "reward_model": {"style": "rule", "ground_truth": {"target": [str(number)]}},
                "extra_info": {"index": number, "split": "train"},
                "metadata": None,
            }
            lines.write(json.dumps(row) + "\n")


def preparation(form: str, raw: Path) -> dict[str, float]:
    """Rows a second, start of the process included, its peak memory, and the size of the file."""
    made = raw.parent / form / "train.parquet"
    command: list[str | Path] = [sys.executable, ROOT / "oai_format_data_preprocess.py"]
    command += ["--input", raw, "--local_dir", made.parent, "--format", form]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError("data preparation failed; its message is above")
    return {"rows/s": ROWS / seconds, "peak MiB": usage.ru_maxrss / 1024, "file MiB": made.stat().st_size / 2**20}


def trajectory(searches: int, choose: random.Random) -> tuple[dict[str, Any], list[str]]:
    """A rollout's record as in sample.metadata, and the gold answers."""
    words = "the place lies in a highland of its country and was founded by settlers who came from an island".split()
    gold = f"{choose.choice(words).title()} {choose.randrange(1000)}"
    found = choose.random() < 0.5
    thought = f"<think>{' '.join(choose.choices(words, k=40))}.</think>\n"
    turns = [Turn.of(parse_turn(f"{thought}<search>where is it</search>")) for _ in range(searches)]
    for number, turn in enumerate(turns, start=1):
        passages = [Passage("A place", f"{' '.join(choose.choices(words, k=100))}.") for _ in range(3)]
        if found and number == searches:
            passages[-1] = Passage("A place", f"{passages[-1].text} It was {gold}, they say.")
        turn.results = [SearchResult("where is it", passages)]
    turns.append(Turn.of(parse_turn(f"{thought}<answer>{gold if found else 'Nairobi'}</answer>")))
    spans = [Span("turn", 60), Span("observation", 400)] * searches + [Span("turn", 60)]
    return RolloutRecord(StopReason.ANSWERED, spans=spans, turns=turns).as_json(), [gold, "another name of it"]


def scoring(searches: int, preset: str) -> float:
    """Trajectories a second of CPU time."""
    choose = random.Random(0)
    recorded = [trajectory(searches, choose) for _ in range(TRAJECTORIES)]
    began = time.process_time()
    for found, golds in recorded:
        record = read_record(found)
        score_trajectory(
            record.answer,
            golds,
            valid_format=record.valid_format,
            searched=record.searched,
            passages=(f"{passage.title}\n{passage.text}" for passage in record.passages),
            **REWARD_PRESETS[preset]._asdict(),
        )
    return TRAJECTORIES / (time.process_time() - began)


def measure(report: Report) -> None:
    """Both tables."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.jsonl"
        write_raw(raw)
        prepared = {form: preparation(form, raw) for form in ("chat", "xml")}
    rows = [{f"preparing {ROWS} rows": form, **figures} for form, figures in prepared.items()]
    report.table("data preparation", rows)
    scored = {
        preset: {str(searches): scoring(searches, preset) for searches in range(4)} for preset in ("default", "f1")
    }
    rows = [{"scored/s, by searches": f"preset {preset}", **rates} for preset, rates in scored.items()]
    report.table("scoring", rows)
    report.bound("preparation takes {} MiB", max(figures["peak MiB"] for figures in prepared.values()), most=1536.0)
    least = min(rate for rates in scored.values() for rate in rates.values())
    report.bound("a core scores {} trajectories a second", least, least=10_000.0)


if __name__ == "__main__":
    run(measure, parser(__doc__))
