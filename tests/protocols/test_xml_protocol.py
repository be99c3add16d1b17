"""What counts as an action of the model."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_rollout.protocols.xml import Action, parse_turn


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ("<think>a</think><search> q </search>", ("search", "q")),
        ("<think>a</think><answer>x</answer>", ("answer", "x")),
        ("<search>q</search>", ("search", "q")),
        ("<answer></answer>", ("answer", "")),  # an answer, though never a right one
        ("<search> </search>", ("invalid", None)),
        ("no tags", ("invalid", None)),
        ("</search>", ("invalid", None)),
        ("<think>a <search>q</search>", ("invalid", None)),  # still thinking
        ("<think>a</think><think>b <answer>x</answer>", ("invalid", None)),
        ("<think><search>no</search></think><search>yes</search>", ("search", "yes")),
        ("<answer>x</answer><search>q</search>", ("answer", "x")),  # the first to be complete
        ("<answer><search>q</search>", ("search", "q")),
        ("<search>a<search>b</search>", ("search", "b")),
        ("<answer>x</answer>\n\n", ("answer", "x")),  # the last token overshot the stop
    ],
)
def test_the_action_follows_the_last_closed_thought(turn, expected):
    kind, text = expected
    action = parse_turn(turn)
    assert (action.kind, action.queries or [action.text]) == (kind, [text])
    assert action.fault or action.kind != "invalid"


def test_a_thought_that_the_prompt_opened_must_be_closed_first():
    assert parse_turn("a <answer>x</answer>", think_opened=True) == Action("invalid", fault="open_thought")
    assert parse_turn("a</think><answer>x</answer>", think_opened=True) == Action("answer", "x")


@given(st.lists(st.sampled_from(["<think>", "</think>", "<search>", "</search>", "<answer>", "</answer>", "x"])))
def test_any_soup_of_tags_has_a_reading(pieces):
    action = parse_turn("".join(pieces))
    assert action.kind in ("search", "answer", "invalid")
    assert bool(action.queries) == (action.kind == "search")


def test_a_megabyte_of_tags_is_read_at_once():
    began = time.monotonic()
    assert parse_turn("<search>" * 100_000).kind == "invalid"
    assert parse_turn("<answer>" * 100_000 + "</answer>").kind == "answer"
    assert time.monotonic() - began < 10.0
