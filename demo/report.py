"""The page of one demo run: `python -m demo.report RUN_DIR` reads the run's files and writes RUN_DIR/report.html.

    summary.json         required: the seed, and whatever else is known (evaluations, gain, arguments)  → header, table
    steps.jsonl          one line per GRPO step                                                         → curves
    warm_start.jsonl     one line per warm-start step                                                   → curve
    trajectories.jsonl   one line per shown rollout: tokens, loss mask, log-probabilities, searches     → coloured text

The page is one file without scripts or external resources. All text that comes from the run passes through `_text`.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

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

# The shape of each file. An int must be there; all else may be missing or null, and is then "", NaN, [] or {}.
STEP: Record = {"step": int} | dict.fromkeys(STEP_COLUMNS, float)
EVALUATION: Record = {
    **dict.fromkeys(("exact_match", "valid_format", "searches_per_question", "questions"), float),
    "by_hops": {"1": float, "2": float},
}
SUMMARY: Record = {
    "seed": int,
    **dict.fromkeys(("model", "dtype", "stopped"), str),
    **dict.fromkeys(("minutes", "seconds", "steps", "mean_abs_delta_logprob"), float),
    "before": EVALUATION,
    "after": EVALUATION,
    "gain": {"exact_match": float, "ci95": [float]},
    "config": {},
}
TRAJECTORY: Record = {
    **dict.fromkeys(("phase", "question", "prompt", "stop_reason", "status"), str),
    "gold": [str],
    "tokens": [str],  # (T_resp,) decoded pieces, prompt excluded
    "loss_mask": [int],  # (T_resp,) 1 = the model wrote it and is trained on it, 0 = the environment wrote it
    "log_probs": [float],  # (T_resp,) or empty
    "reward": float,
    "reward_parts": {},
    "searches": [{"query": str, "documents": [{"title": str, "text": str}], "error": str}],
}


class Run(NamedTuple):
    summary: Record
    steps: list[Record]
    warm_start: list[Record]
    trajectories: list[Record]


def read_run(run_dir: Path) -> Run:
    """Reads a run's files; ValueError with one sentence that names the file and line that cannot be used."""
    path = run_dir / "summary.json"
    if not path.is_file():
        raise ValueError(f"{run_dir} holds no summary.json; is it the folder of a run?")
    try:
        summary = _conform(json.loads(path.read_bytes()), SUMMARY, "the file")
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name}, line {error.lineno}: not JSON ({error.msg}).") from None
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}.") from None
    steps, warm_start = (_read_jsonl(run_dir / name, STEP) for name in ("steps.jsonl", "warm_start.jsonl"))
    return Run(summary, steps, warm_start, _read_jsonl(run_dir / "trajectories.jsonl", TRAJECTORY))


def _read_jsonl(path: Path, shape: Record) -> list[Record]:
    """One record per line. A missing file is empty; an unfinished last line is an interrupted write, left out."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:  # not JSON, or not UTF-8
            if number == len(lines):  # no newline after it
                break
            raise ValueError(f"{path.name}, line {number}: not JSON.") from None
        try:
            records.append(_conform(record, shape, "the line"))
            _check_alignment(records[-1])
        except ValueError as error:
            raise ValueError(f"{path.name}, line {number}: {error}.") from None
    return records


def _conform(value: Any, shape: Any, name: str) -> Any:
    """`value`, checked against `shape`, with what is missing filled in; infinite numbers become NaN, "not known"."""
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
    """A trajectory's tokens, mask and log-probabilities go together, one each; other records have none of them."""
    length, mask, log_probs = len(record.get("tokens", [])), record.get("loss_mask", []), record.get("log_probs", [])
    if len(mask) != length or len(log_probs) not in (0, length):
        raise ValueError("`tokens`, `loss_mask` and `log_probs` differ in length")
    if not set(mask) <= {0, 1}:
        raise ValueError("`loss_mask` holds something other than 0 and 1")


# ---- words and numbers -----------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    return escape(str(value))


def _number(value: float, spec: str = ".4g") -> str:
    """`value` in a format spec with a real minus sign and without -0; a dash for a number that is not known."""
    return "—" if math.isnan(value) else f"{round(value, 9) + 0.0:{spec}}".replace("-", "\N{MINUS SIGN}")


def _points(difference: float) -> str:
    return "—" if math.isnan(difference) else f"{_number(100 * difference, '+.1f')} points"


def _tiles(facts: dict[str, object]) -> str:
    """Small captioned values side by side; what is not known is left out."""
    known = [(name, value) for name, value in facts.items() if value not in ("", "—")]
    tiles = [f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in known]
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _table(head: list[str], rows: list[list[str]]) -> str:
    """A table of plain text that scrolls sideways on a narrow screen; the first cell of each row is its heading."""
    top = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in head)
    body = ""
    for first, *others in rows:
        body += f'<tr><th scope="row">{_text(first)}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in others)}</tr>\n'
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


# ---- header and table ------------------------------------------------------------------------------------------------


def _header(run: Run) -> str:
    summary = run.summary
    used = summary["minutes"] if math.isnan(summary["seconds"]) else summary["seconds"] / 60
    endings = {"time": "time was up", "steps": "all steps done"}
    facts: dict[str, object] = {
        "model": summary["model"],
        "seed": summary["seed"],
        "GRPO steps": _number(len(run.steps) if math.isnan(summary["steps"]) else summary["steps"]),
        "minutes": _number(used, ".1f"),
        "precision": summary["dtype"],
        "ended": endings.get(summary["stopped"], summary["stopped"]),
        f"mean {STEP_COLUMNS['abs_delta_logprob']}": _number(summary["mean_abs_delta_logprob"], ".4f"),
    }
    return f"""<header><p class="muted">Search-R1 on slime · demo run</p><h1>Learning to search with GRPO</h1>
<p>A language model answers questions. It may call a search engine before it answers, and is rewarded for an answer that
matches the gold one. GRPO compares several rollouts of the same question and reinforces the better ones.</p>
{_tiles(facts)}</header>"""


def _results(summary: Record) -> str:
    """The before/after table under one sentence on what it shows."""
    before, after, gain = summary["before"], summary["after"], summary["gain"]
    low, high = gain["ci95"] if len(gain["ci95"]) == 2 else (math.nan, math.nan)
    interval = "" if math.isnan(low + high) else f"{_number(100 * low, '+.1f')} to {_points(high)}"
    gained = after["exact_match"] - before["exact_match"] if math.isnan(gain["exact_match"]) else gain["exact_match"]
    old, new = before["exact_match"], after["exact_match"]
    rows = [["Exact match", _number(old, ".1%"), _number(new, ".1%"), _points(gained)]]
    if interval:
        rows.append(["… paired 95 % interval", "", "", interval])
    shares = [
        ("… one-search questions", before["by_hops"]["1"], after["by_hops"]["1"]),
        ("… two-search questions", before["by_hops"]["2"], after["by_hops"]["2"]),
        ("Valid format", before["valid_format"], after["valid_format"]),
    ]
    rows += [[name, _number(old, ".1%"), _number(new, ".1%"), _points(new - old)] for name, old, new in shares]
    old, new = before["searches_per_question"], after["searches_per_question"]
    rows.append(["Searches per question", _number(old, ".2f"), _number(new, ".2f"), _number(new - old, "+.2f")])
    verdict = ""
    if math.isnan(after["exact_match"]):
        verdict = '<p class="notice">This run has no evaluation after training, so there is no gain to report.</p>'
    elif interval:
        meaning = "excludes 0" if low > 0 or high < 0 else "includes 0: no clear change"
        verdict = f"""<p>Exact match changed by <strong>{_points(gained)}</strong> on
{_number(after["questions"])} questions, each asked before and after (95 % confidence interval {interval}). The
interval {meaning}.</p>"""
    table = _table(["Evaluation", "Before GRPO", "After GRPO", "Change"], rows)
    return f"<section><h2>Before and after</h2>{verdict}{table}</section>"


# ---- curves ----------------------------------------------------------------------------------------------------------


class Chart(NamedTuple):
    title: str
    note: str
    series: tuple[str, ...]  # keys of STEP_COLUMNS; the second one is dashed
    top: float = 0.0  # the vertical axis reaches at least this value


CHARTS = (
    Chart("Reward and exact match", "means over the step's rollouts", ("reward", "exact_match"), 1.0),
    Chart("Valid format", "share of rollouts in the asked-for format", ("valid_format",), 1.0),
    Chart("Searches per question", "mean number of search calls", ("searches_per_question",), 1.0),
    Chart("Response length", "mean number of tokens", ("response_length",)),
    Chart("Actions and documents", "turns, and samples", ("valid_actions", "gold_in_documents"), 1.0),
    Chart("Logprob of sampled tokens", "towards 0: the model is sure of itself", ("log_prob",)),
    Chart("Repetition", "4-grams of tokens said before", ("repetition",)),
    Chart("Nothing to learn from", "share of groups", ("zero_variance_groups", "zero_variance_wrong"), 1.0),
    Chart(STEP_COLUMNS["abs_delta_logprob"], "near 0: trainer and rollout agree", ("abs_delta_logprob",)),
)
WARM_START = Chart("Warm start: loss", "supervised steps before GRPO", ("loss",))
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 200, 44, 12, 10, 36  # of a chart and its margins, in SVG units


def _curves(run: Run) -> str:
    figures = [_figure(chart, run.steps) for chart in CHARTS] + [_figure(WARM_START, run.warm_start)]
    if not any(figures):
        return '<section><h2>Training curves</h2><p class="notice">No training step has been recorded.</p></section>'
    rows = [[str(row["step"]), *(_number(row[key]) for key in STEP_COLUMNS)] for row in run.steps]
    table = _table(["step", *STEP_COLUMNS.values()], rows)
    return f"""<section><h2>Training curves</h2><p>Each point is one step, measured on that step's own rollouts. Point
at it to see its value.</p><div class="grid">{"".join(figures)}</div>
<details><summary>Every number of every step</summary>{table}</details></section>"""


def _figure(chart: Chart, rows: list[Record]) -> str:
    """One chart as inline SVG, or nothing when no step has its numbers."""
    rows = sorted(rows, key=lambda row: int(row["step"]))
    values = [row[key] for row in rows for key in chart.series if math.isfinite(row[key])]
    if not values:
        return ""
    ticks = _ticks(min(0.0, *values), max(chart.top, *values))
    first, last = rows[0]["step"], rows[-1]["step"]

    def x(step: int) -> float:
        return LEFT + 6 + ((step - first) / (last - first) if last > first else 0.5) * (WIDTH - LEFT - RIGHT - 12)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (HEIGHT - TOP - BOTTOM)

    axes = f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">step</text>'
    for tick in ticks:
        axes += f'<path class="rule" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>'
        axes += f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{_number(tick)}</text>'
    for step in range(first, last + 1, max(1, math.ceil((last - first) / 7))):
        axes += f'<text x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{step}</text>'
    lines = "".join(f'<g class="s{i}">{_line(key, rows, x, y)}</g>' for i, key in enumerate(chart.series))
    names = [f'<span class="key s{i}">{_text(STEP_COLUMNS[key])}</span>' for i, key in enumerate(chart.series)]
    return f"""<figure><figcaption><strong>{_text(chart.title)}</strong><small class="muted">{_text(chart.note)}</small>
{"".join(names) if len(names) > 1 else ""}</figcaption>
<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_text(chart.title)} by step">{axes}{lines}</svg></figure>"""


def _line(key: str, rows: list[Record], x: Callable[[int], float], y: Callable[[float], float]) -> str:
    """The curve of one series, broken where a step lacks the number, with a tooltip on every point."""
    path, points, pen = "", "", "M"
    for row in rows:
        if math.isnan(row[key]):
            pen = "M"
            continue
        at = f'cx="{x(row["step"]):.1f}" cy="{y(row[key]):.1f}"'
        path, pen = f"{path}{pen}{x(row['step']):.1f} {y(row[key]):.1f}", "L"
        title = f"step {row['step']} · {STEP_COLUMNS[key]} {_number(row[key])}"
        dots = f'<circle class="dot" {at} r="3"/><circle class="hit" {at} r="9"/>'
        points += f"<g><title>{_text(title)}</title>{dots}</g>"
    return f'<path class="line" d="{path}"/>{points}'


def _ticks(low: float, high: float) -> list[float]:
    """About five round values from at most `low` to at least `high`."""
    rough = ((high - low) or 1.0) / 4
    scale = 10.0 ** math.floor(math.log10(rough))
    gap = next(factor * scale for factor in (1, 2, 2.5, 5, 10, 20) if factor * scale >= rough * 0.999)
    return [number * gap for number in range(math.floor(low / gap), math.ceil(high / gap - 1e-9) + 1)]


# ---- trajectories ----------------------------------------------------------------------------------------------------

PHASES = {"untrained": "Untrained model", "before": "Before GRPO", "after": "After GRPO", "": "Unnamed phase"}
LIKELY, UNLIKELY = -0.1, -1.0  # log-probabilities between the three shades of trained tokens: p = 0.90 and p = 0.37


def _trajectories(records: list[Record]) -> str:
    groups: dict[str, str] = {}
    for number, record in enumerate(records):
        groups[record["phase"]] = groups.get(record["phase"], "") + _trajectory(record, is_open=number == 0)
    if not groups:
        return '<section><h2>Trajectories</h2><p class="notice">No trajectory has been recorded.</p></section>'
    shown = [f"<h3>{_text(PHASES.get(name, name))}</h3>{cards}" for name, cards in groups.items()]
    return f"""<section><h2>Trajectories</h2><p>The response of each rollout, token by token. Tokens with loss mask 1
are the model's own: GRPO trains on them. Tokens with loss mask 0 came from the environment and stay out of the loss.
Point at a token to see its log-probability.</p>
<p class="legend"><span class="m1">trained, logprob above {_number(LIKELY)}</span>
<span class="m1 p1">trained, {_number(UNLIKELY)} to {_number(LIKELY)}</span>
<span class="m1 p2">trained, below {_number(UNLIKELY)}</span>
<span class="m0">environment, not trained</span></p>{"".join(shown)}</section>"""


def _trajectory(record: Record, is_open: bool) -> str:
    correct, answer = record["reward_parts"].get("exact_match"), record["reward_parts"].get("answer")
    kind, badge = ("good", "✓ correct") if correct is True else ("bad", "✗ wrong")
    if not isinstance(correct, bool):
        kind, badge = "", "not graded"
    facts: dict[str, object] = {"gold": " / ".join(record["gold"]), "answer": "none" if answer is None else answer}
    facts["reward"] = _number(record["reward"], ".2f")
    for name, value in record["reward_parts"].items():
        shown = ("no", "yes")[value] if isinstance(value, bool) else "none" if value is None else value
        facts.setdefault(name.replace("_", " "), shown)
    facts |= {"stop reason": record["stop_reason"].replace("_", " "), "status": record["status"]}
    trained = sum(record["loss_mask"])
    facts["tokens"] = f"{trained} trained, {len(record['tokens']) - trained} environment"
    prompt = f'<details><summary>Prompt</summary><div class="tokens">{_text(record["prompt"])}</div></details>'
    return f"""<details class="card"{" open" if is_open else ""}>
<summary><span class="badge {kind}">{badge}</span> {_text(record["question"])}</summary>
{_tiles(facts)}{prompt if record["prompt"] else ""}<div class="tokens">{_tokens(record)}</div>
{_searches(record["searches"])}</details>
"""


def _tokens(record: Record) -> str:
    """One span per token, nothing between them: the text stays exactly what the tokens decode to."""
    log_probs = record["log_probs"] or [math.nan] * len(record["tokens"])
    spans = ""
    for index, (token, mask) in enumerate(zip(record["tokens"], record["loss_mask"], strict=True)):
        title, kind, log_prob = f"token {index} · environment", "m0", log_probs[index]
        if mask:  # an environment token's log-probability is a placeholder: it is not shown
            title = f"token {index} · trained"
            title += "" if math.isnan(log_prob) else f" · logprob {_number(log_prob, '.2f')}"
            kind = "m1 p2" if log_prob < UNLIKELY else "m1 p1" if log_prob < LIKELY else "m1"
        kind += " nl" if token.startswith("\n") else ""
        spans += f'<span class="{kind}" title="{title}">{_text(token)}</span>'
    return spans


def _searches(searches: list[Record]) -> str:
    shown = ""
    for number, search in enumerate(searches, start=1):
        found = [(_text(document["title"]), _text(document["text"])) for document in search["documents"]]
        documents = "".join(f"<li><strong>{title}</strong> {text}</li>" for title, text in found)
        documents = f"<ol>{documents}</ol>" if found else '<p class="muted">No document came back.</p>'
        error = f'<p class="notice">Error: {_text(search["error"])}</p>' if search["error"] else ""
        heading = f"Search {number}: <strong>{_text(search['query'])}</strong>"
        shown += f'<div class="search">{heading}{error}{documents}</div>'
    return shown


# ---- the page --------------------------------------------------------------------------------------------------------

CSS = """
:root { color-scheme: light dark; --page: #f5f6f8; --card: #fff; --ink: #1a1f27; --muted: #58616e; --rule: #d9dee5;
  --blue: #1d5fc4; --orange: #b45309; --good: #17693a; --good-back: #dcf5e5; --bad: #a3211b; --bad-back: #fde6e4;
  --m1: #e3eefd; --m1-p1: #bfd8fb; --m1-p2: #8fbaf5; --m1-ink: #0a2347; --m0: #fcefd2; --m0-ink: #553a04; }
@media (prefers-color-scheme: dark) { :root { --page: #12151a; --card: #1b2027; --ink: #e5e9ef; --muted: #a0a9b6;
  --rule: #343c47; --blue: #79adf5; --orange: #f0a34a; --good: #7fdca4; --good-back: #12381f; --bad: #ffa49d;
  --bad-back: #4a1a17; --m1: #172c4b; --m1-p1: #1d4375; --m1-p2: #2a60a8; --m1-ink: #e2edfd; --m0: #3a2e14;
  --m0-ink: #f2deb0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
p { max-width: 75ch; }
h1 { margin: 0; line-height: 1.2; } h2 { margin: 2.5rem 0 .5rem; } h3 { margin: 1.75rem 0 .5rem; }
h3::first-letter { text-transform: uppercase; }
.muted, dt { color: var(--muted); } header .muted { margin: 0; }
.notice { border-left: 4px solid var(--orange); padding: .4rem .8rem; background: var(--card); }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem 1.75rem; margin: 1rem 0; }
dt { font-size: .8rem; } dd { margin: 0; font-weight: 600; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; background: var(--card); overflow-wrap: normal; }
th, td { padding: .45rem .8rem; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: top;
  font-variant-numeric: tabular-nums; }
th { font-weight: 600; } th:first-child { text-align: left; }
@media (max-width: 600px) { th, td { padding: .4rem; font-size: .85rem; } }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); }
figure, .card { margin: 0; padding: .8rem 1rem; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; }
figure { display: flex; flex-direction: column; }
figcaption { line-height: 1.4; } figcaption small { display: block; }
svg { margin-top: auto; width: 100%; height: auto; } svg text { fill: var(--muted); font-size: 11px; }
.rule { stroke: var(--rule); } .line { fill: none; stroke: currentColor; stroke-width: 2; }
.s0 { color: var(--blue); } .s1 { color: var(--orange); } .s1 .line { stroke-dasharray: 5 3; }
.dot { fill: currentColor; } .hit { fill: transparent; } g:hover > .dot { r: 5; }
.key { margin-right: .8rem; font-size: .85rem; } .key::before { content: ""; display: inline-block; width: 1.6em;
  margin-right: .4em; vertical-align: middle; border-top: 2px solid; } .key.s1::before { border-top-style: dashed; }
details { margin: .6rem 0; } details table { font-size: .85rem; } summary { cursor: pointer; }
.card { margin: .6rem 0; } .card > summary { font-weight: 600; }
.badge { padding: .1rem .5rem; border-radius: 99px; border: 1px solid; font-size: .8rem; white-space: nowrap; }
.good { color: var(--good); background: var(--good-back); } .bad { color: var(--bad); background: var(--bad-back); }
.tokens { padding: .7rem; border: 1px solid var(--rule); border-radius: 6px; white-space: pre-wrap; tab-size: 4;
  font: 14px/1.75 ui-monospace, Menlo, Consolas, monospace; }
.m0, .m1 { padding: 2px 0; border-radius: 3px; print-color-adjust: exact; }
.m0 { background: var(--m0); color: var(--m0-ink); }
.m1 { background: var(--m1); color: var(--m1-ink); border-bottom: 2px solid var(--blue); }
.p1 { background: var(--m1-p1); } .p2 { background: var(--m1-p2); }
.tokens span:hover { outline: 2px solid var(--ink); } .nl::before { content: "↵"; opacity: .55; }
.legend { position: sticky; top: 0; max-width: none; padding: .5rem 0; background: var(--page); font-size: .85rem; }
.legend span { display: inline-block; padding: 0 .5rem; }
.search { margin: .8rem 0 0; padding-left: .8rem; border-left: 3px solid var(--rule); font-size: .9rem; }
.search ol { margin: 0; padding-left: 1.4rem; } .search p { margin: .25rem 0; }
"""

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Search-R1 demo · seed {seed}</title><style>{css}</style></head><body>{body}</body></html>
"""  # the policy forbids scripts and requests, should an escape ever be forgotten


def render(run: Run) -> str:
    """The whole page."""
    parts = [_header(run), _results(run.summary), _curves(run), _trajectories(run.trajectories)]
    if run.summary["config"]:
        table = _table(["argument", "value"], [[name, str(value)] for name, value in run.summary["config"].items()])
        parts.append(f"<details><summary>Arguments of this run</summary>{table}</details>")
    return PAGE.format(seed=run.summary["seed"], css=CSS, body="\n".join(parts))


def write_report(run_dir: Path) -> Path:
    """Writes `report.html` into the run's folder, whole or not at all, and returns its path."""
    page = render(read_run(run_dir))
    path = run_dir / "report.html"
    unfinished = path.with_name(f"{path.name}.unfinished-{os.getpid()}")
    try:
        unfinished.write_bytes(page.encode("utf-8", errors="replace"))  # a token may hold half a surrogate pair
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
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
