"""Shows a run's results as tables and a plot, next to published figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluation.metrics import Estimate

SETS = ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")
PAPER = "Search-R1, arXiv:2503.09516v5, exact match of Qwen2.5-3B on full test sets, Wikipedia 2018, E5"
PUBLISHED = {  # exact match of SETS
    "GRPO, instruct": (0.397, 0.565, 0.391, 0.331, 0.310, 0.124, 0.232),
    "GRPO, base": (0.421, 0.583, 0.413, 0.297, 0.274, 0.066, 0.128),
    "PPO, instruct": (0.341, 0.545, 0.378, 0.324, 0.319, 0.103, 0.264),
    "PPO, base": (0.406, 0.587, 0.435, 0.284, 0.273, 0.049, 0.088),
    "RAG, not trained": (0.348, 0.544, 0.387, 0.255, 0.226, 0.047, 0.080),
}
LATER = {"verl-tool": 0.410, "Agent-Lightning": 0.406}  # averages only, of Qwen2.5-3B, from these trainers' READMEs
COLUMNS = {  # of the first table, after exact match and its interval
    "f1": "F1",
    "sub_em": "sub-EM",
    "searches": "searches",
    "turns": "turns",
    "valid_format": "valid",
    "gold_found": "gold found",
    "truncated": "truncated",
    "gave_up": "discarded",
}

Summary = Mapping[str, Mapping[str, Estimate]]


def tables(summary: Summary, counts: Mapping[str, int]) -> str:
    """All metrics of each set, then exact match next to the paper's for the paper's sets."""
    header = ["set", "questions", "EM", "95 % interval", *COLUMNS.values()]
    rows = []
    for name, row in summary.items():
        number = str(counts.get(name, sum(counts.values())))
        rows.append([_title(name, counts), number, *cells(*row["em"]), *(f"{row[key].mean:.3f}" for key in COLUMNS)])
    several = _of_several_samples(summary, counts)
    return "\n".join(["", *aligned(header, rows), *several, *_beside_the_paper(summary, counts), ""])


def _of_several_samples(summary: Summary, counts: Mapping[str, int]) -> list[str]:
    """pass@k and majority@n, if questions were asked several times."""
    measures = [key for key in next(iter(summary.values())) if "@" in key]
    if not measures:
        return []
    samples, rows = measures[-1].partition("@")[2], []
    for name, row in summary.items():
        shown = [row[key] for key in ("em", *measures)]
        rows.append([_title(name, counts), *(f"{one.mean:.3f} ({one.low:.3f} to {one.high:.3f})" for one in shown)])
    note = f"exact match of {samples} samples, intervals over questions; avg@{samples} is EM above, and pass@1:"
    return ["", note, *aligned(["set", f"avg@{samples}", *measures], rows)]


def _beside_the_paper(summary: Summary, counts: Mapping[str, int]) -> list[str]:
    columns = [number for number, name in enumerate(SETS) if name in counts]
    if not columns:
        return []
    names = [SETS[column] for column in columns]
    ours = [summary[name]["em"].mean for name in names]
    rows = [["this run", *_cells(ours)]]
    rows += [[name, *_cells([figures[column] for column in columns])] for name, figures in PUBLISHED.items()]
    if len(columns) == len(SETS):
        rows += [[f"{name} (its README)", *[""] * len(SETS), f"{figure:.3f}"] for name, figure in LATER.items()]
    average = "average" if len(columns) == len(SETS) else "average of these"
    return ["", f"beside {PAPER}:", *aligned(["exact match", *names, average], rows)]


def _cells(figures: Sequence[float]) -> list[str]:
    return [f"{figure:.3f}" for figure in (*figures, sum(figures) / len(figures))]


def _title(name: str, counts: Mapping[str, int]) -> str:
    return name if name in counts else f"average of {len(counts)} sets"


def cells(mean: float, low: float, high: float, sign: str = "") -> list[str]:
    """A mean and its interval; `sign` "+" shows it for positive numbers too."""
    return [f"{mean:{sign}.3f}", f"{low:{sign}.3f} to {high:{sign}.3f}"]


def rank(name: str) -> tuple[int, str]:
    """Sort key: the paper's sets in its order, then others by name."""
    return SETS.index(name) if name in SETS else len(SETS), name


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: first column left-aligned, numbers right-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    shape = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
    return [shape.format(*row).rstrip() for row in (header, *rows)]


def draw(summary: Summary, counts: Mapping[str, int], path: Path, title: str) -> None:
    """Plots exact match of each set as a bar with its interval, and the paper's figures as marks."""
    from matplotlib.figure import Figure

    names = list(summary)
    whole = set(SETS) <= set(counts)
    figure = Figure(figsize=(max(5.0, 1.1 * len(names) + 2.5), 4.2), layout="constrained")
    axes = figure.add_subplot()
    means, lows, highs = np.array([summary[name]["em"] for name in names]).T
    errors = [means - lows, highs - means]
    axes.bar(
        range(len(names)), means, width=0.5, color="#9ecae1", yerr=errors, capsize=4, label="this run, 95 % interval"
    )
    for label, marker, colour in (("GRPO, instruct", "D", "#f58518"), ("RAG, not trained", "o", "#767676")):
        figures = dict(zip(SETS, PUBLISHED[label], strict=True))
        if whole:
            figures["average"] = sum(PUBLISHED[label]) / len(SETS)
        known = [(bar + 0.34, figures[name]) for bar, name in enumerate(names) if name in figures]
        if known:
            axes.plot(*zip(*known, strict=True), marker, color=colour, linestyle="", label=f"paper, 3B: {label}")
    axes.set_xticks(range(len(names)), [name.replace("multihopqa", "\nmultihopqa") for name in names])
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.set_ylim(0, 1)
    axes.set_ylabel("exact match")
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)
