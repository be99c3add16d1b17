"""The page of a demo run, from files as the demo writes them to the HTML that a browser reads."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from demo.report import main, write_report
from search_rollout.samples.record import RolloutRecord, Turn
from search_rollout.search.passage import Passage, SearchResult
from search_rollout.trajectory import StopReason

VOID = {"meta", "path", "circle"}  # elements without an end tag; the SVG ones close themselves

SUMMARY: dict[str, Any] = {
    **{"seed": 0, "model": "SmolLM2-135M-Instruct", "minutes": 18, "seconds": 1043.2, "steps": 2, "dtype": "bfloat16"},
    "before": {"exact_match": 0.52, "valid_format": 0.9, "searches_per_question": 1.3, "questions": 160},
    "after": {"exact_match": 0.69, "valid_format": 0.98, "searches_per_question": 1.5, "questions": 160},
    "gain": {"exact_match": 0.17, "ci95": [0.10, 0.25]},
    **{"mean_abs_delta_logprob": 0.011, "stopped": "time", "config": {"group_size": 8}},
}
SUMMARY["before"]["by_hops"] = {"1": 0.7, "2": 0.2}
SUMMARY["after"]["by_hops"] = {"1": 0.82, "2": 0.44}

STEPS: list[dict[str, Any]] = [
    {"step": 1, "reward": 0.55, "exact_match": 0.5, "valid_format": 0.93, "response_length": 212.0, "loss": -0.2},
    {"step": 2, "reward": 0.65, "exact_match": 0.6, "valid_format": 0.95, "response_length": 208.0, "grad_norm": None},
]

SCORE: dict[str, Any] = {"exact_match": True, "valid_format": True, "answer": "Nairobi", "retrieved_gold": False}
SEARCHES = [
    SearchResult('Kenya" onmouseover="x', [Passage("<script>alert(2)</script>", "</details></body>&amp;")]),
    SearchResult("capital", [], "timed out after 30 s"),
]


def trajectory(score: dict[str, Any] = SCORE, **changes: Any) -> dict[str, Any]:
    """A record of trajectories.jsonl."""
    searches = [Turn("search", queries=[result.query], results=[result]) for result in SEARCHES]
    info = RolloutRecord(
        StopReason.ANSWERED, turns=[*searches, Turn("answer", answer="Nairobi")], score=score
    ).as_json()
    return {
        **{"phase": "before", "id": "q0", "gold": ["Nairobi"], "prompt_text": "Answer & search.\n"},
        "metadata": {"question": "Which <city>?", "search_r1": info},
        "pieces": ["<search>", "Kenya", "</search>", "\n", "<script>alert(1)</script>", "  Nairobi", "<|im_end|>"],
        "loss_mask": [1, 1, 1, 0, 0, 1, 1],
        "rollout_log_probs": [-0.12, -0.01, -2.5, 0.0, 0.0, -0.5, -0.02],
        **{"reward": 1.0, "status": "completed"},
        **changes,
    }


TRAJECTORY = trajectory()


class Page(HTMLParser):
    """Reads a page strictly: every element is closed in order. Keeps elements, attributes and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert tag not in VOID and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}

    def tips(self) -> list[str]:
        """The tooltips of all charts, in order."""
        return [
            str(attributes["data-tip"]) for tag, attributes in self.elements if tag == "g" and "data-tip" in attributes
        ]


def write_run(folder: Path, summary: object = SUMMARY, **files: list[dict[str, Any]]) -> Path:
    """A run folder: summary.json and one .jsonl file per keyword."""
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    for name, records in files.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def whole_run(folder: Path) -> Path:
    warm_start = [{"step": 1, "loss": 2.1, "seconds": 9.8}, {"step": 2, "loss": 1.4, "seconds": 9.7}]
    return write_run(folder, steps=STEPS, warm_start=warm_start, trajectories=[TRAJECTORY, TRAJECTORY])


def test_page_of_a_whole_run_is_balanced_and_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    path = write_report(whole_run(tmp_path))
    page = Page(path)
    assert path == tmp_path / "report.html"
    assert not page.tags() & {"link", "img", "iframe"}
    assert not [name for _, attributes in page.elements for name in attributes if name == "src"]
    assert {attributes["href"] for tag, attributes in page.elements if tag == "a"} == {"trajectories.jsonl"}
    html = path.read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?:", html)
    script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)  # one, and the policy has its hash
    (policy,) = [a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert len(script) == 1 and f"script-src 'sha256-{digest}'" in str(policy)
    assert sorted(p.name for p in tmp_path.glob("*html*")) == ["report.html"]  # no unfinished page stays


def test_table_shows_the_gain_with_its_interval_and_each_kind_of_question(tmp_path: Path) -> None:
    text = Page(write_report(whole_run(tmp_path))).text
    assert "Exact match52.0%69.0%+17.0 points" in text
    assert "95 % interval +10.0 to +25.0 points, which excludes 0" in text and "on 160 held-out questions" in text
    assert "one-search questions70.0%82.0%+12.0 points" in text
    assert "two-search questions20.0%44.0%+24.0 points" in text
    assert "Valid format90.0%98.0%+8.0 points" in text
    assert "Searches per question1.301.50+0.20" in text
    assert "The model learned to search: +17.0 points" in text


def test_interval_around_zero_is_not_called_a_change(tmp_path: Path) -> None:
    summary = SUMMARY | {"gain": {"exact_match": 0.02, "ci95": [-0.03, 0.07]}}
    text = Page(write_report(write_run(tmp_path, summary))).text
    assert "+2.0 points" in text and "\N{MINUS SIGN}3.0 to +7.0 points" in text
    assert "includes 0: no clear change" in text and "No clear change: +2.0 points" in text


def test_every_point_of_a_curve_has_a_tooltip_and_a_curve_without_numbers_is_left_out(tmp_path: Path) -> None:
    page = Page(write_report(whole_run(tmp_path)))
    assert {"step 1 · reward 0.55", "step 2 · exact match 0.6"} < set(page.tips())
    charts = [str(attributes["aria-label"]) for tag, attributes in page.elements if tag == "svg"]
    assert [name.partition(" by step")[0] for name in charts] == [
        "Reward and exact match",
        "Valid format",
        "Response length",
        "Warm start: loss",
    ]
    dots = [attributes for _, attributes in page.elements if attributes.get("class") == "dot"]
    assert len(dots) == 2 * 2 + 2 + 2 + 2  # the first chart has two series


def test_held_out_results_are_marked_before_the_first_step_and_after_the_last(tmp_path: Path) -> None:
    page = Page(write_report(whole_run(tmp_path)))
    marks = [tip for tip in page.tips() if "held-out" in tip]
    assert marks == ["held-out questions before GRPO · 0.52", "held-out questions after GRPO · 0.69"]


def test_the_story_is_a_question_that_was_wrong_before_and_right_after(tmp_path: Path) -> None:
    wrong = SCORE | {"exact_match": False, "answer": "Kenya"}
    wrong_ones = {("before", "q1"), ("before", "q2"), ("after", "q2")}
    records = []
    for phase in ("before", "after"):
        for name in ("q0", "q1", "q2"):
            record = trajectory(wrong if (phase, name) in wrong_ones else SCORE, phase=phase, id=name)
            record["metadata"]["question"] = f"Question {name}?"
            records.append(record)
    text = Page(write_report(write_run(tmp_path, trajectories=records))).text
    story = text[text.index("The same question") : text.index("What GRPO changed")]
    assert "Question q1?" in story and "Question q0?" not in story and "Question q2?" not in story
    assert story.index("✗ wrong") < story.index("After GRPO") < story.index("✓ correct")
    assert "what the search found" in story


def test_a_run_that_goes_on_has_a_page_that_says_so(tmp_path: Path) -> None:
    summary = {key: value for key, value in SUMMARY.items() if key not in ("after", "gain")} | {"stopped": "running"}
    text = Page(write_report(write_run(tmp_path, summary, trajectories=[TRAJECTORY]))).text
    assert "This run is not finished" in text and "Which <city>?" in text


def test_command_date_and_settings_of_the_run_are_on_the_page(tmp_path: Path) -> None:
    summary = SUMMARY | {"arguments": ["--seed", "3"], "started": "2026-11-24 20:41"}
    text = Page(write_report(write_run(tmp_path, summary))).text
    assert "Command: search-r1 demo --seed 3" in text and "2026-11-24 20:41" in text and "group_size8" in text


def test_numbers_that_are_not_finite_are_gaps_in_the_page(tmp_path: Path) -> None:
    steps = [
        {"step": step, "reward": reward} for step, reward in ((1, 0.1), (2, float("nan")), (3, float("inf")), (4, 0.4))
    ]
    html = write_report(write_run(tmp_path, steps=steps)).read_text(encoding="utf-8")
    assert len(re.findall(r'<path class="line" d="M[\d.]+ [\d.]+M[\d.]+ [\d.]+"/>', html)) == 1  # two points, no line
    assert "nan" not in html.lower() and ">inf<" not in html


def test_text_of_the_run_never_becomes_markup(tmp_path: Path) -> None:
    hostile = "</title></style><script>alert(3)</script>"
    summary = SUMMARY | {"model": hostile, "dtype": hostile, "stopped": hostile, "config": {hostile: hostile}}
    other = trajectory({hostile: [hostile]}, phase=hostile, status=hostile)
    page = Page(write_report(write_run(tmp_path, summary, trajectories=[TRAJECTORY, other])))
    assert [tag for tag, _ in page.elements].count("script") == 1  # our own
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    for shown in (
        "<script>alert(1)</script>",
        "Which <city>?",
        hostile,
    ):
        assert shown in page.text


def test_run_that_knows_only_its_seed_still_has_a_page(tmp_path: Path) -> None:
    text = Page(write_report(write_run(tmp_path, {"seed": 7}, steps=[], trajectories=[]))).text
    assert "seed7" in text
    assert "No training step has been recorded." in text


def test_interrupted_run_shows_its_first_evaluation_and_no_gain(tmp_path: Path) -> None:
    summary = {key: value for key, value in SUMMARY.items() if key not in ("after", "gain")} | {
        "stopped": "interrupted"
    }
    text = Page(write_report(write_run(tmp_path, summary))).text
    assert "no evaluation after training" in text and "interrupted" in text
    assert "Exact match52.0%——" in text


@pytest.mark.parametrize("unfinished", [b'{"step": 3, "rew', b'{"step": 3, "note": "\xe2\x82'])
def test_unfinished_last_line_is_left_out(tmp_path: Path, unfinished: bytes) -> None:
    whole_run(tmp_path)
    with (tmp_path / "steps.jsonl").open("ab") as file:
        file.write(unfinished)
    text = Page(write_report(tmp_path)).tips()
    assert "step 2 · reward 0.65" in text and not any("step 3" in tip for tip in text)


def test_last_line_that_lacks_only_its_newline_counts(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "steps.jsonl").write_text('{"step": 1, "reward": 0.5}', encoding="utf-8")
    assert "step 1 · reward 0.5" in Page(write_report(tmp_path)).tips()


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("steps", '{"step": 3,', "not JSON"),
        ("steps", "[3]", "the line should be an object, not [3]"),
        ("steps", '{"reward": 1.0}', "`step` should be a whole number, not null"),
        ("steps", '{"step": 3, "reward": "high"}', '`reward` should be a number, not "high"'),
        (
            "trajectories",
            '{"pieces": ["a"], "loss_mask": []}',
            "`pieces` and `loss_mask` differ in length",
        ),
        ("trajectories", '{"pieces": ["a"], "loss_mask": [2]}', "`loss_mask` holds something other than 0 and 1"),
        ("trajectories", '{"pieces": ["a", 5], "loss_mask": [1, 1]}', "`pieces`[1] should be text, not 5"),
        ("trajectories", '{"metadata": {"search_r1": [1]}}', "`search_r1` should be an object, not [1]"),
    ],
)
def test_malformed_line_is_named_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, line: str, reason: str
) -> None:
    whole_run(tmp_path)
    with (tmp_path / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"error: {name}.jsonl, line 3: {reason}.\n"
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"seed": 0,\n "model" 3}', "summary.json, line 2: not JSON (Expecting ':' delimiter)."),
        ("{}", "summary.json: `seed` should be a whole number, not null."),
        ('{"seed": 0, "before": 3}', "summary.json: `before` should be an object, not 3."),
    ],
)
def test_malformed_summary_is_named_in_one_sentence(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "summary.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)):
        write_report(tmp_path)


def test_folder_without_a_summary_is_an_error_with_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "has no summary.json; is it a run's folder?" in capsys.readouterr().err


def test_a_failed_report_leaves_the_old_page_unchanged(tmp_path: Path) -> None:
    old = write_report(whole_run(tmp_path)).read_bytes()
    (tmp_path / "steps.jsonl").write_text("broken\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"steps\.jsonl, line 1"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == old


def test_half_a_surrogate_pair_in_a_token_does_not_stop_the_page(tmp_path: Path) -> None:
    half = trajectory(pieces=["\ud83d"], loss_mask=[1])
    assert "Which <city>?" in Page(write_report(write_run(tmp_path, trajectories=[half]))).text


def test_main_prints_the_page_that_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(whole_run(tmp_path))]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
