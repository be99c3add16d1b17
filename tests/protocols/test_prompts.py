"""Prompts: the wording that published figures depend on, and rows of slime's prompt data."""

import hashlib
import json

import pytest

from search_rollout.protocols.prompts import (
    CHAT_INSTRUCTIONS,
    SEARCH_TOOL,
    XML_INSTRUCTIONS,
    chat_messages,
    clean_question,
    prompt_of,
    prompt_row,
    xml_messages,
)
from search_rollout.protocols.tools import tools_of

QUESTION = "Who wrote Emma?"
EXTRA = {"id": "nq/test_3", "split": "test", "index": 3}


def test_the_wording_is_that_of_the_published_runs():
    # The demo's figures come from these very bytes: a change here is a new run of the demo.
    wording = json.dumps([XML_INSTRUCTIONS, CHAT_INSTRUCTIONS, SEARCH_TOOL])
    assert hashlib.sha256(wording.encode()).hexdigest()[:12] == "23658bad07b1"


@pytest.mark.parametrize(
    ("question", "clean"),
    [
        ("who wrote emma", "who wrote emma?"),
        (" who\nwrote  emma ? ", "who wrote emma ?"),
        ('who wrote "Emma"', 'who wrote "Emma"?'),
        ("Name the author of Emma.", "Name the author of Emma."),
        ("谁写了爱玛", "谁写了爱玛?"),
        (" ", ""),
    ],
)
def test_a_question_gets_the_mark_that_it_lacks_and_keeps_it(question, clean):
    assert clean_question(question) == clean
    assert clean_question(clean) == clean


def test_messages_explain_the_mode_and_end_in_the_question():
    for messages, named in ((xml_messages(QUESTION), "<search>"), (chat_messages(QUESTION), "search tool")):
        assert [message["role"] for message in messages] == ["system", "user"]
        assert named in messages[0]["content"] and messages[1]["content"] == QUESTION
    assert prompt_of(QUESTION, "text") == f"{XML_INSTRUCTIONS}\n\nQuestion: {QUESTION}\n"


@pytest.mark.parametrize("mode", ["generate", "chat", "text"])
def test_a_row_holds_the_prompt_of_its_mode_the_targets_and_where_it_is_from(mode):
    row = prompt_row("Who wrote Emma", ["Jane Austen", "Austen"], "nq", mode=mode, extra=EXTRA)
    assert row["prompt"] == prompt_of(QUESTION, mode)
    assert row["reward_model"] == {"style": "rule", "ground_truth": {"target": ["Jane Austen", "Austen"]}}
    assert (row["data_source"], row["extra_info"]) == ("nq", EXTRA)
    assert {**EXTRA, "question": QUESTION, "data_source": "nq"}.items() <= row["metadata"].items()
    if mode == "chat":
        assert row["tools"] == row["metadata"]["tools"]
        assert tools_of(row["metadata"]) == json.loads(row["tools"]) == [SEARCH_TOOL]
    else:
        assert "tools" not in row and "tools" not in row["metadata"]
