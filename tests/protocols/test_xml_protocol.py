"""What counts as an action of the model."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_rollout.protocols.xml import Action, parse_action


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ("<think>a</think><search> q </search>", Action("search", "q")),
        ("<think>a</think><answer>x</answer>", Action("answer", "x")),
        ("<search>q</search>", Action("search", "q")),
        ("<answer></answer>", Action("answer", "")),  # an answer, though never a right one
        ("<search> </search>", Action("invalid")),
        ("no tags", Action("invalid")),
        ("</search>", Action("invalid")),
        ("<think>a <search>q</search>", Action("invalid")),  # still thinking
        ("<think>a</think><think>b <answer>x</answer>", Action("invalid")),
        ("<think><search>no</search></think><search>yes</search>", Action("search", "yes")),
        ("<answer>x</answer><search>q</search>", Action("answer", "x")),  # the first to be complete
        ("<answer><search>q</search>", Action("search", "q")),
        ("<search>a<search>b</search>", Action("search", "b")),
        ("<answer>x</answer>\n\n", Action("answer", "x")),  # the last token overshot the stop
    ],
)
def test_the_action_stands_after_the_last_closed_thought(turn, expected):
    assert parse_action(turn)[:2] == expected[:2]
    assert parse_action(turn).queries == ([expected.text] if expected.kind == "search" else [])


def test_a_thought_that_the_prompt_opened_must_be_closed_first():
    assert parse_action("a <answer>x</answer>", think_opened=True) == Action("invalid")
    assert parse_action("a</think><answer>x</answer>", think_opened=True) == Action("answer", "x")


@given(st.lists(st.sampled_from(["<think>", "</think>", "<search>", "</search>", "<answer>", "</answer>", "x"])))
def test_any_soup_of_tags_has_a_reading(pieces):
    action = parse_action("".join(pieces))
    assert action.kind in ("search", "answer", "invalid")
    assert action.kind != "search" or action.text


def test_a_megabyte_of_tags_is_read_at_once():
    began = time.monotonic()
    assert parse_action("<search>" * 100_000).kind == "invalid"
    assert parse_action("<answer>" * 100_000 + "</answer>").kind == "answer"
    assert time.monotonic() - began < 10.0
