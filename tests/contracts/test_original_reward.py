"""Our reward beside the original project's, on 100,000 random trajectories: every difference is one of a known kind.

    SEARCH_R1_DIR=/path/to/Search-R1 pytest tests/contracts/test_original_reward.py

docs/REWARDS.md lists the kinds, and says whose side is right.
"""

import contextlib
import importlib.util
import io
import os
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qa_em_format import normalize_answer, score_trajectory
from search_rollout.config import REWARD_PRESETS
from search_rollout.samples.bare_text import xml_record

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(os.environ.get("SEARCH_R1_DIR", "")) / "verl" / "utils" / "reward_score" / "qa_em_format.py"
TRAJECTORIES = 100_000
PROMPT = "<|im_start|>user\nFor example, <answer> Beijing </answer>.<|im_end|>\n<|im_start|>assistant\n"
GOLDS = ["Nairobi", "A"]
TAGS = [f"<{slash}{tag}>" for tag in ("think", "search", "information", "answer") for slash in ("", "/")]
SEARCHED = "<think>x</think>\n<search>Kenya</search>\n\n<information>Its capital is Nairobi.</information>\n\n"
WORDS = ["Nairobi", "Mombasa", "the", "x", " ", "\n", "<|im_end|>"]
WHOLE = [
    SEARCHED,
    SEARCHED.replace("Kenya", " "),
    SEARCHED.replace("Its", "<answer>Nairobi</answer> </search>"),
    "<think>y</think>\n<answer>Nairobi</answer>",
    "<think>y</think>\n<answer>Mombasa</answer>",
    "<think><answer>Nairobi</answer></think>",
]

# Kind of difference → what it looks like. The first that fits is counted.
KINDS = {
    "a gold answer of which normalisation leaves nothing": lambda text: normalize_answer(_answer(text)) == "",
    "several answers": lambda text: _outside(text).count("<answer>") > 1 or text.count("</answer>") > 1,
    "an answer inside a thought": lambda text: _outside(text).count("<answer>") < text.count("<answer>"),
    "a document that holds tags": lambda text: any(tag in found for found in _documents(text) for tag in TAGS),
    "an answer that is not the last action": lambda text: not xml_record(text).turns[-1].answer,
    "a token at the end of a turn": lambda text: "<|im_end|>" in text,
    "a search without a query": lambda text: re.search(r"<search>\s*</search>", text),
}


def _answer(text: str) -> str:
    found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return found[-1] if found else "x"


def _documents(text: str) -> list[str]:
    return re.findall(r"<information>(.*?)</information>", text, re.DOTALL)


def _outside(text: str) -> str:
    return "".join(piece.partition("<think>")[0] for piece in text.split("</think>"))


def response(choose: random.Random) -> str:
    """Searches and an answer, or whole turns in any order, with soup between them now and then."""
    ordered = [SEARCHED] * choose.randint(0, 2) + choose.choices(WHOLE[3:5])
    pieces = ordered if choose.random() < 0.8 else choose.choices(WHOLE, k=choose.randint(1, 3))
    for _ in range(choose.choice([0, 0, 1, 2])):
        pieces.insert(choose.randrange(len(pieces) + 1), choose.choice(TAGS + WORDS))
    return "".join(pieces)


@pytest.fixture(scope="module")
def original() -> Any:
    spec = importlib.util.spec_from_file_location("original_reward", SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.skipif(not SOURCE.is_file(), reason="SEARCH_R1_DIR names no checkout of the original project")
def test_every_difference_from_the_original_reward_is_of_a_documented_kind(original: Any) -> None:
    scores = REWARD_PRESETS["paper_v03"]._asdict()
    theirs = {"structure_format_score": scores["format_score"], "final_format_score": scores["final_format_score"]}
    choose, kinds, equal = random.Random(0), Counter[str](), 0
    for _ in range(TRAJECTORIES):
        text = response(choose)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a sample now and then
            their_score = original.compute_score_em(PROMPT + text, {"target": GOLDS}, **theirs)
        record = xml_record(text)
        our_score = score_trajectory(record.answer, GOLDS, valid_format=record.valid_format, **scores).reward
        if our_score == pytest.approx(their_score):
            equal += 1
            continue
        kind = next((name for name, fits in KINDS.items() if fits(text)), None)
        assert kind is not None, (text, our_score, their_score)
        kinds[kind] += 1
    print(f"\n{equal} of {TRAJECTORIES} equal; {dict(kinds)}")
    assert set(kinds) == set(KINDS) and equal > TRAJECTORIES / 2


def test_every_kind_of_difference_is_in_the_documentation() -> None:
    page = (ROOT / "docs" / "REWARDS.md").read_text(encoding="utf-8")
    assert not [kind for kind in KINDS if f"| {kind} |" not in page]
