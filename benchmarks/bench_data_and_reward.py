"""How fast and how small data preparation is, and how many trajectories a core scores in a second.

    python benchmarks/bench_data_and_reward.py [--json FILE]

Preparation: oai_format_data_preprocess.py, in a process of its own, on 50,000 rows in the shape of Search-R1's data
set. Scoring: reward_func's part without slime, on trajectories with 0 to 3 searches of three passages, some with the
answer in them; CPU seconds of one core.
"""

import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.reporting import parser, print_table, verdict, write_json  # noqa: E402
from qa_em_format import score_trajectory  # noqa: E402
from search_rollout.config import REWARD_PRESETS  # noqa: E402
from search_rollout.protocols.xml import parse_turn  # noqa: E402
from search_rollout.samples.record import RolloutRecord, Span, Turn, read_record  # noqa: E402
from search_rollout.search.searcher import Passage, SearchResult  # noqa: E402
from search_rollout.trajectory import StopReason  # noqa: E402

ROWS = 50_000
TRAJECTORIES = 2_000
MOST_MIB, LEAST_SCORED = 1536, 10_000
MEASURE = (  # runs the command in its arguments, then prints the peak memory of that process in KiB
    "import resource, runpy, sys; sys.argv = sys.argv[1:]\n"
    "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    "finally: print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)


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


def preparation(form: str, folder: Path) -> dict[str, float]:
    """Rows a second, start of the process included, and its peak memory in MiB."""
    script = str(ROOT / "oai_format_data_preprocess.py")
    arguments = ["--input", str(folder / "raw.jsonl"), "--local_dir", str(folder / form), "--format", form]
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", MEASURE, script, *arguments], capture_output=True, text=True)
    seconds = time.perf_counter() - began
    peak = re.search(r"^peak (\d+)$", done.stdout, re.MULTILINE)
    if done.returncode or f"{ROWS} rows" not in done.stdout or not peak:
        raise RuntimeError(f"data preparation failed: {done.stderr.strip()}")
    size = (folder / form / "train.parquet").stat().st_size
    return {"rows_per_s": ROWS / seconds, "peak_mib": int(peak[1]) / 1024, "file_mib": size / 2**20}


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
    scores = REWARD_PRESETS[preset]._asdict()
    began = time.process_time()
    for found, golds in recorded:
        record = read_record(found)
        score_trajectory(
            record.answer,
            golds,
            valid_format=record.valid_format,
            searched=record.searched,
            passages=(f"{passage.title}\n{passage.text}" for passage in record.passages),
            **scores,
        )
    return TRAJECTORIES / (time.process_time() - began)


def main() -> int:
    """Prints the tables; returns 1 if a bound is missed."""
    args = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_raw(Path(folder) / "raw.jsonl")
        prepared = {form: preparation(form, Path(folder)) for form in ("chat", "xml")}
    print_table(
        [f"preparing {ROWS} rows", "rows/s", "peak MiB", "file MiB"],
        [
            [form, *(f"{figures[key]:.0f}" for key in ("rows_per_s", "peak_mib")), f"{figures['file_mib']:.1f}"]
            for form, figures in prepared.items()
        ],
    )
    scored = {preset: {searches: scoring(searches, preset) for searches in range(4)} for preset in ("default", "f1")}
    print()
    print_table(
        ["scored/s, by searches", *map(str, range(4))],
        [[preset, *(f"{rate:.0f}" for rate in rates.values())] for preset, rates in scored.items()],
    )
    peak = max(figures["peak_mib"] for figures in prepared.values())
    least = min(rate for rates in scored.values() for rate in rates.values())
    held = peak <= MOST_MIB, least >= LEAST_SCORED
    print()
    print(verdict(f"preparation takes {peak:.0f} MiB at its peak (at most {MOST_MIB})", held[0]))
    print(verdict(f"a core scores {least:.0f} trajectories a second (at least {LEAST_SCORED})", held[1]))
    write_json(args.json, {"preparation": prepared, "scored_per_s": scored})
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
