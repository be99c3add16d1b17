"""Question-answer rows in every shape that users have them: what goes into data preparation, what must come out."""

import json
from typing import Any, NamedTuple

import numpy as np


class Row(NamedTuple):
    """A raw row, and the question, answers and source that it holds."""

    name: str
    raw: dict[str, Any]
    question: str
    golds: list[str]
    source: str | None = None  # None: the row does not say
    id: str | None = None


def _search_r1(target: Any) -> dict[str, Any]:
    """As PeterJinGo/nq_hotpotqa_train has them."""
    instructions = "Reason in <think> and </think>, search with <search> query </search>. Question: "
    return {
        "id": "train_7",
        "question": "total number of death row inmates in the us?",
        "golden_answers": ["2,718"],
        "data_source": "nq",
        "prompt": [{"role": "user", "content": f"{instructions}total number of death row inmates in the us?\n"}],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": target}},
        "extra_info": {"index": 7, "split": "train"},
        "metadata": None,
    }


def _without(row: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in keys}


INMATES = "total number of death row inmates in the us?"
LABEL = {"style": "rule", "ground_truth": {"target": ["2,718"]}}
BARE = _without(_search_r1(["2,718"]), "question", "golden_answers")  # prompt and label are all there is

ROWS = [
    Row("search_r1", _search_r1(["2,718"]), INMATES, ["2,718"], "nq", "nq/train_7"),
    Row("search_r1 arrays", _search_r1(np.array(["2,718"], dtype=object)), INMATES, ["2,718"], "nq", "nq/train_7"),
    Row("prompt and label only", BARE, INMATES, ["2,718"], "nq", "nq/train_7"),
    Row("label as JSON", BARE | {"reward_model": json.dumps(LABEL)}, INMATES, ["2,718"], "nq", "nq/train_7"),
    Row(
        "label as a repr with an array",
        BARE | {"reward_model": "{'ground_truth': {'target': array(['2,718'], dtype=object)}, 'style': 'rule'}"},
        INMATES,
        ["2,718"],
        "nq",
        "nq/train_7",
    ),
    Row(
        "prompt as an array of messages",
        BARE | {"prompt": np.array(BARE["prompt"], dtype=object)},
        INMATES,
        ["2,718"],
        "nq",
        "nq/train_7",
    ),
    Row("prompt as text", BARE | {"prompt": f"Question: {INMATES}"}, INMATES, ["2,718"], "nq", "nq/train_7"),
    Row(
        "own data: the prompt is the question",
        {"prompt": [{"role": "user", "content": "who wrote Emma"}], "reward_model": {"ground_truth": "Jane Austen"}},
        "who wrote Emma?",
        ["Jane Austen"],
    ),
    Row(
        "flashrag",
        {
            "id": "dev_0",
            "question": "Were Scott Derrickson and Ed Wood of the same nationality?",
            "golden_answers": ["yes"],
            "metadata": {"type": "comparison", "supporting_facts": {"title": ["Ed Wood"], "sent_id": [0]}},
        },
        "Were Scott Derrickson and Ed Wood of the same nationality?",
        ["yes"],
    ),
    Row(
        "several golds, one blank, one a number",
        {
            "question": " when did\nqueen victoria  die ",
            "golden_answers": ["1901", " ", None, 1.5, "22 Jan 1901"],
        },
        "when did queen victoria die?",
        ["1901", "1.5", "22 Jan 1901"],
    ),
    Row(
        "JSON golds",
        {"question": "q?", "golden_answers": '["New York", "NYC"]'},
        "q?",
        ["New York", "NYC"],
    ),
    Row("a gold that normalises to nothing", {"question": "q?", "golden_answers": ["The"]}, "q?", ["The"]),
    Row("a gold of punctuation", {"question": "q?", "golden_answers": ["!!!"]}, "q?", ["!!!"]),
    Row(
        "a gold of a word that names nothing",
        {"question": "which film?", "golden_answers": "It"},
        "which film?",
        ["It"],
    ),
    Row(
        "a gold in another script",
        {"question": "谁?", "golden_answers": ["São Tomé", "東京"]},
        "谁?",
        ["São Tomé", "東京"],
    ),
    Row("a gold with tags", {"question": "q?", "golden_answers": ["the <br> tag"]}, "q?", ["the <br> tag"]),
    Row(
        "a long gold",
        {"question": "q?", "golden_answers": ["University of Oxford in the United Kingdom"]},
        "q?",
        ["University of Oxford in the United Kingdom"],
    ),
]
UNUSABLE = [  # a raw row, and the reason why it cannot be used
    ({"question": " ", "golden_answers": ["x"]}, "no question"),
    ({"golden_answers": ["x"]}, "no question"),
    ({"question": float("nan"), "golden_answers": ["x"]}, "no question"),
    ({"prompt": "Reason in <think>, then <answer>", "golden_answers": ["x"]}, "no question"),
    ({"question": "q?"}, "no gold answer"),
    ({"question": "q?", "golden_answers": []}, "no gold answer"),
    ({"question": "q?", "golden_answers": ["", " ", None]}, "no gold answer"),
    ({"question": "q?", "golden_answers": float("nan")}, "no gold answer"),
    ({"question": "q?", "reward_model": {"ground_truth": {"target": None}}}, "no gold answer"),
    (["a", "list"], "not an object"),
]
