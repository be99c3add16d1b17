"""The report of a demo run: `python -m demo.report RUN_DIR` reads the run's files and writes RUN_DIR/report.html.

    summary.json         required: the seed, and optionally evaluations, gain and arguments
    steps.jsonl          one line per GRPO step: the curves
    warm_start.jsonl     one line per warm-start step: a curve
    trajectories.jsonl   one line per recorded rollout: a slime Sample, its phase and the texts of its tokens

This module prepares the data; report.html.jinja, report.css and report.js are the page. The page is one file and makes
no network requests. Its policy allows only our own script, by its hash.
"""

import argparse
import base64
import hashlib
import itertools
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from evaluation.records import whole_file
from search_rollout.samples.record import read_record

Record = dict[str, Any]  # one JSON object after `_conform`: every key of its shape is there

STEP_COLUMNS = {  # key in steps.jsonl: its name on the page
    "reward": "reward",
    "exact_match": "exact match",
    "valid_format": "valid format",
    "searches_per_question": "searches per question",
    "response_length": "response length",
    "abs_delta_logprob": "|train \N{MINUS SIGN} rollout logprob|",
    "log_prob": "logprob of sampled tokens",  # this one and the next five: search_rollout/metrics.py
    "valid_actions": "valid actions",
    "gold_in_documents": "gold in documents",
    "repetition": "repetition",
    "zero_variance_groups": "groups of equal rewards",
    "zero_variance_wrong": "groups all wrong",
    "groups_trained": "groups trained",
    "groups": "groups",
    "loss": "loss",
    "grad_norm": "gradient norm",
    "seconds": "seconds",
}

# The shape of each file. An int is required; other values may be missing or null, and become "", NaN, [] or {}.
STEP: Record = {"step": int} | dict.fromkeys(STEP_COLUMNS, float)
EVALUATION: Record = {
    **dict.fromkeys(("exact_match", "valid_format", "searches_per_question", "questions"), float),
    "by_hops": {"1": float, "2": float},
}
SUMMARY: Record = {
    "seed": int,
    **dict.fromkeys(("model", "dtype", "stopped", "started"), str),
    **dict.fromkeys(("seconds", "mean_abs_delta_logprob"), float),
    "before": EVALUATION,
    "after": EVALUATION,
    "gain": {"exact_match": float, "ci95": [float]},
    "arguments": [str],
    "config": {},
}
TRAJECTORY: Record = {
    **dict.fromkeys(("phase", "id"), str),
    "gold": [str],
    "pieces": [str],  # (T_resp,) decoded tokens, prompt excluded
    "loss_mask": [int],  # (T_resp,) 1 = the model wrote it and is trained on it, 0 = the environment wrote it
    "metadata": {"question": str, "search_r1": {}},
}


class Run(NamedTuple):
    summary: Record
    steps: list[Record]
    warm_start: list[Record]
    trajectories: list[Record]


def read_run(run_dir: Path) -> Run:
    """Reads a run's files. Raises ValueError, in one sentence with file and line, if one cannot be used."""
    path = run_dir / "summary.json"
    if not path.is_file():
        raise ValueError(f"{run_dir} has no summary.json; is it a run's folder?")
    try:
        summary = _conform(json.loads(path.read_bytes()), SUMMARY, "the file")
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name}, line {error.lineno}: not JSON ({error.msg}).") from None
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}.") from None
    steps, warm_start = (_read_jsonl(run_dir / name, STEP) for name in ("steps.jsonl", "warm_start.jsonl"))
    return Run(summary, steps, warm_start, _read_jsonl(run_dir / "trajectories.jsonl", TRAJECTORY))


def _read_jsonl(path: Path, shape: Record) -> list[Record]:
    """One record per line. A missing file is empty; an incomplete last line (an interrupted write) is skipped."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(_conform(json.loads(line), shape, "the line"))
            _check_alignment(records[-1])
        except (json.JSONDecodeError, UnicodeDecodeError):
            if number < len(lines):  # a newline follows
                raise ValueError(f"{path.name}, line {number}: not JSON.") from None
        except ValueError as error:
            raise ValueError(f"{path.name}, line {number}: {error}.") from None
    return records


def _conform(value: Any, shape: Any, name: str) -> Any:
    """`value`, checked against `shape`, with missing parts filled in; infinite numbers become NaN ("unknown")."""
    kind: Any = shape if isinstance(shape, type) else type(shape)
    if value is None and kind is not int:
        value = math.nan if kind is float else kind()
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:  # not isinstance: True is no number here
        wanted = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "an object"}[kind]
        raise ValueError(f"{name} should be {wanted}, not {json.dumps(value)[:60]}")
    if kind is list:
        return [_conform(item, shape[0], f"{name}[{index}]") for index, item in enumerate(value)]
    if kind is dict:
        return value | {key: _conform(value.get(key), part, f"`{key}`") for key, part in shape.items()}
    return math.nan if kind is float and not math.isfinite(value) else value


def _check_alignment(record: Record) -> None:
    """Checks that a record has one mask value per token, or none of the two."""
    mask = record.get("loss_mask", [])
    if len(mask) != len(record.get("pieces", [])):
        raise ValueError("`pieces` and `loss_mask` differ in length")
    if not set(mask) <= {0, 1}:
        raise ValueError("`loss_mask` holds something other than 0 and 1")


# ---- words and numbers -----------------------------------------------------------------------------------------------


def _number(value: float, spec: str = ".4g") -> str:
    """Formats `value` with a real minus sign and without -0; a dash for an unknown number."""
    return "—" if math.isnan(value) else f"{round(value, 9) + 0.0:{spec}}".replace("-", "\N{MINUS SIGN}")


def _points(difference: float) -> str:
    return "—" if math.isnan(difference) else f"{_number(100 * difference, '+.1f')} points"


# ---- the story -------------------------------------------------------------------------------------------------------


def _headline(summary: Record) -> Record:
    """Title and gain; a run without its last evaluation gets a notice instead of the gain."""
    before, after, gained = summary["before"], summary["after"], summary["gain"]["exact_match"]
    if math.isnan(gained):
        running = summary["stopped"] == "running"
        notice = "This run has no evaluation after training, so there is no gain to report."
        return {
            "headline": "Learning to search with GRPO",
            "notice": "This run is not finished: reload the page to follow it." if running else notice,
        }
    low, high = (*summary["gain"]["ci95"], math.nan, math.nan)[:2]
    clear = low > 0 or high < 0
    meaning = "excludes 0" if clear else "includes 0: no clear change"
    verb = "No clear change" if not clear else "The model learned to search" if gained > 0 else "The model got worse"
    return {
        "headline": f"{verb}: {_points(gained)}",
        "gain": {
            "before": _number(before["exact_match"], ".1%"),
            "after": _number(after["exact_match"], ".1%"),
            "points": _points(gained),
            "kind": "" if not clear else "better" if gained > 0 else "worse",
            "interval": f"exact match on {_number(after['questions'])} held-out questions. "
            f"95 % interval {_number(100 * low, '+.1f')} to {_points(high)}, which {meaning}",
        },
    }


def _story(records: list[Record]) -> Record | None:
    """A question that GRPO taught the model to answer; else any asked before and after, or only before."""
    before, after = ({r["id"]: r for r in records if r["phase"] == phase} for phase in ("before", "after"))
    both = [name for name in before if name in after]
    learned = [name for name in both if not _is_right(before[name]) and _is_right(after[name])]
    name = next(iter([*learned, *both, *before]), None)
    if name is None:
        return None
    story = _shown(before[name])
    late = _shown(after[name]) if name in after else None
    return {"question": story["question"], "gold": story["gold"], "before": story, "after": late}


def _results(summary: Record) -> list[list[str]]:
    """The rows of the before/after table."""
    before, after = summary["before"], summary["after"]
    shares = [
        ("Exact match", before["exact_match"], after["exact_match"]),
        ("… one-search questions", before["by_hops"]["1"], after["by_hops"]["1"]),
        ("… two-search questions", before["by_hops"]["2"], after["by_hops"]["2"]),
        ("Valid format", before["valid_format"], after["valid_format"]),
    ]
    rows = [[name, _number(old, ".1%"), _number(new, ".1%"), _points(new - old)] for name, old, new in shares]
    old, new = before["searches_per_question"], after["searches_per_question"]
    return [*rows, ["Searches per question", _number(old, ".2f"), _number(new, ".2f"), _number(new - old, "+.2f")]]


def _facts(run: Run) -> dict[str, str]:
    summary = run.summary
    endings = {"time": "time was up", "steps": "all steps done"}
    return {
        "model": summary["model"],
        "seed": str(summary["seed"]),
        "started": summary["started"],
        "GRPO steps": str(len(run.steps)),
        "minutes": _number(summary["seconds"] / 60, ".1f"),
        "precision": summary["dtype"],
        "ended": endings.get(summary["stopped"], summary["stopped"]),
        f"mean {STEP_COLUMNS['abs_delta_logprob']}": _number(summary["mean_abs_delta_logprob"], ".4f"),
    }


# ---- curves ----------------------------------------------------------------------------------------------------------


class Chart(NamedTuple):
    title: str
    note: str
    series: tuple[str, ...]  # keys of STEP_COLUMNS; the second one is dashed
    top: float = 0.0  # the vertical axis reaches at least this value
    held_out: str = ""  # key of EVALUATION, marked before the first step and after the last


CHARTS = (
    Chart("Reward and exact match", "means over the step's rollouts", ("reward", "exact_match"), 1.0, "exact_match"),
    Chart("Searches per question", "mean number", ("searches_per_question",), 1.0, "searches_per_question"),
)
MORE_CHARTS = (
    Chart("Valid format", "share of rollouts in the requested format", ("valid_format",), 1.0),
    Chart("Response length", "mean number of tokens", ("response_length",)),
    Chart("Actions and documents", "turns, and samples", ("valid_actions", "gold_in_documents"), 1.0),
    Chart("Logprob of sampled tokens", "near 0: the model is sure of itself", ("log_prob",)),
    Chart("Repetition", "share of 4-grams that occurred before", ("repetition",)),
    Chart("Nothing to learn from", "share of groups", ("zero_variance_groups", "zero_variance_wrong"), 1.0),
    Chart(STEP_COLUMNS["abs_delta_logprob"], "near 0: trainer and rollout agree", ("abs_delta_logprob",)),
)
WARM_START = Chart("Warm start: loss", "supervised steps before GRPO", ("loss",))
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 200, 44, 12, 10, 36  # chart size and margins, in SVG units


def _figures(charts: Iterable[Chart], rows: list[Record], summary: Record) -> list[Record]:
    return [figure for chart in charts if (figure := _figure(chart, rows, summary))]


def _figure(chart: Chart, rows: list[Record], summary: Record) -> Record | None:
    """The template's data for one chart; None if no step has its numbers."""
    rows = sorted(rows, key=lambda row: int(row["step"]))
    values = [row[key] for row in rows for key in chart.series if math.isfinite(row[key])]
    if not values:
        return None
    first, last = rows[0]["step"], rows[-1]["step"]
    ends = {"before": first - 1, "after": last + 1}
    held = {when: summary[when].get(chart.held_out, math.nan) for when in ends}
    held = {when: value for when, value in held.items() if not math.isnan(value)}
    ticks = _ticks(min(0.0, *values), max(chart.top, *values, *held.values()))
    begin, end = (ends["before"], ends["after"]) if held else (first, last)

    def x(step: int) -> float:
        return LEFT + 6 + ((step - begin) / (end - begin) if end > begin else 0.5) * (WIDTH - LEFT - RIGHT - 12)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (HEIGHT - TOP - BOTTOM)

    labels = [{"x": (LEFT + WIDTH - RIGHT) / 2, "y": HEIGHT - 4, "anchor": "middle", "text": "step"}]
    labels += [{"x": LEFT - 6, "y": f"{y(tick) + 4:.1f}", "anchor": "end", "text": _number(tick)} for tick in ticks]
    labels += [
        {"x": f"{x(step):.1f}", "y": HEIGHT - BOTTOM + 16, "anchor": "middle", "text": step}
        for step in range(first, last + 1, max(1, math.ceil((last - first) / 7)))
    ]
    return {
        **{"title": chart.title, "note": chart.note, "width": WIDTH, "height": HEIGHT, "labels": labels},
        "names": [STEP_COLUMNS[key] for key in chart.series] if len(chart.series) > 1 else [],
        "rules": [{"path": f"M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"} for tick in ticks],
        "lines": [_line(key, rows, x, y) for key in chart.series],
        "marks": [_mark(when, value, x(ends[when]), y(value)) for when, value in held.items()],
    }


def _line(key: str, rows: list[Record], x: Callable[[int], float], y: Callable[[float], float]) -> Record:
    """The points and curve of one series; the curve has a gap at steps that lack the number."""
    path, points, pen = "", [], "M"
    for row in rows:
        if math.isnan(row[key]):
            pen = "M"
            continue
        at = {"x": f"{x(row['step']):.1f}", "y": f"{y(row[key]):.1f}"}
        path, pen = f"{path}{pen}{at['x']} {at['y']}", "L"
        points.append(at | {"tip": f"step {row['step']} · {STEP_COLUMNS[key]} {_number(row[key])}"})
    return {"path": path, "points": points}


def _mark(when: str, value: float, x: float, y: float) -> Record:
    tip = f"held-out questions {when} GRPO · {_number(value)}"
    return {"x": f"{x:.1f}", "y": f"{y:.1f}", "tip": tip, "path": f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z"}


def _ticks(low: float, high: float) -> list[float]:
    """About five round values from at most `low` to at least `high`."""
    rough = ((high - low) or 1.0) / 4
    scale = 10.0 ** math.floor(math.log10(rough))
    gap = next(factor * scale for factor in (1, 2, 2.5, 5, 10, 20) if factor * scale >= rough * 0.999)
    return [number * gap for number in range(math.floor(low / gap), math.ceil(high / gap - 1e-9) + 1)]


# ---- trajectories ----------------------------------------------------------------------------------------------------


def _is_right(record: Record) -> bool:
    return _score(record).get("exact_match") is True


def _score(record: Record) -> Record:
    found = record["metadata"]["search_r1"]
    return (read_record(found).score if found else None) or {}


def _shown(record: Record) -> Record:
    """The template's data for a trajectory."""
    kind, badge = ("good", "✓ correct") if _is_right(record) else ("bad", "✗ wrong")
    if not isinstance(_score(record).get("exact_match"), bool):
        kind, badge = "", "not graded"
    pieces = zip(record["loss_mask"], record["pieces"], strict=True)
    turns = [
        {"is_model": bool(mask), "text": "".join(text for _, text in part).strip()}
        for mask, part in itertools.groupby(pieces, key=lambda piece: piece[0])
    ]
    return {
        **{"badge": badge, "badge_kind": kind, "gold": " / ".join(record["gold"])},
        "question": record["metadata"]["question"],
        "turns": [turn for turn in turns if turn["text"]],
    }


# ---- the page --------------------------------------------------------------------------------------------------------

PAGE_PARTS = Path(__file__).parent
LINKS = {"trajectories.html": "in the browser, with filters", "trajectories.jsonl": "as JSON lines"}


def render(run: Run, links: list[tuple[str, str]]) -> str:
    """The whole page; `links` are files in the run's folder with their titles."""
    summary = run.summary
    style, script = ((PAGE_PARTS / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE_PARTS), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    started = [summary["started"]] if summary["started"] else []
    return environment.get_template("report.html.jinja").render(
        {"gain": None, "notice": ""} | _headline(summary),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        seed=summary["seed"],
        subtitle=", ".join([summary["model"], f"seed {summary['seed']}", *started]),
        story=_story(run.trajectories),
        charts=_figures(CHARTS, run.steps, summary),
        more_charts=[*_figures(MORE_CHARTS, run.steps, summary), *_figures([WARM_START], run.warm_start, summary)],
        results=_results(summary),
        step_columns=["step", *STEP_COLUMNS.values()],
        steps=[[str(row["step"]), *(_number(row[key]) for key in STEP_COLUMNS)] for row in run.steps],
        links=links,
        facts=_facts(run),
        command=shlex.join(["search-r1", "demo", *summary["arguments"]]) if summary["started"] else "",
        config=[[name, str(value)] for name, value in summary["config"].items()],
    )


def write_report(run_dir: Path) -> Path:
    """Writes `report.html` into the run's folder atomically and returns its path."""
    links = [(name, title) for name, title in LINKS.items() if (run_dir / name).is_file()]
    page = render(read_run(run_dir), links)
    path = run_dir / "report.html"
    with whole_file(path) as unfinished:
        unfinished.write_bytes(page.encode("utf-8", errors="replace"))  # a token may hold half a surrogate pair
    return path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.report", description="Write the page of a demo run again.")
    parser.add_argument("run_dir", type=Path, help="the run's folder, which holds summary.json")
    try:
        print(write_report(parser.parse_args(argv).run_dir))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
