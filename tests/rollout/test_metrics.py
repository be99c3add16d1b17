"""The series of a batch of rollouts: figures computed by hand on small samples, and any odd sample at all."""

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slime.utils.types import Sample

from search_rollout.group_filter import FilterStep
from search_rollout.metrics import repetition, rollout_metrics, search_cost
from search_rollout.samples.record import RolloutRecord, Span, search_counts
from search_rollout.samples.record import Turn as TurnRecord
from search_rollout.search.passage import SearchResult
from search_rollout.trajectory import StopReason

RIGHT = {"exact_match": True, "valid_format": True, "answer": "Nairobi", "retrieved_gold": True}
WRONG = {"exact_match": False, "valid_format": False, "answer": "Mombasa", "retrieved_gold": False}
SILENT = {"exact_match": False, "valid_format": False, "answer": None, "retrieved_gold": True}


def search(query: str, seconds: float = 0.1, origin: str = "backend", error: str | None = None) -> dict[str, Any]:
    return {"query": query, "seconds": seconds, "origin": origin, "error": error}


def sample(
    *segments: tuple[str, int],
    searches: list[dict] | None = None,
    stop: str = "answered",
    score: dict | None = None,
    **fields: Any,
) -> Sample:
    """A finished rollout. A segment is its kind and how many tokens it has; no two of all tokens are the same."""
    results = [SearchResult(**one) for one in searches or []]
    mask = [int(kind == "turn") for kind, tokens in segments for _ in range(tokens)]
    record = RolloutRecord(
        StopReason(stop),
        spans=[Span(*segment) for segment in segments],
        turns=[TurnRecord("search", queries=[result.query for result in results], results=results)],
        search_counts=search_counts(results),
        score=score,
    )
    values = {
        "tokens": [1, 2, *range(100, 100 + len(mask))],  # two of the prompt
        "response_length": len(mask),
        "loss_mask": mask,
        "rollout_log_probs": [-0.5 * one for one in mask],
        "reward": 1.0,
        "metadata": {"search_r1": record.as_json()},
    }
    return Sample(**(values | fields))


def discarded(**fields: Any) -> Sample:
    return sample(stop="engine_failed", **{"tokens": [1, 2, 0], "response_length": 1, "loss_mask": [0]} | fields)


def test_turns_searches_and_actions_are_means_over_samples_and_shares_of_turns() -> None:
    two = [
        sample(
            *[("turn", 5), ("observation", 10), ("turn", 5), ("observation", 10), ("turn", 5)],
            searches=[search("Kenya"), search(" kenya ")],  # the same query, but for case and blanks
            score=RIGHT,
        ),
        sample(("turn", 5), ("correction", 7), ("turn", 8), stop="turns_used", score=SILENT),
    ]
    series = rollout_metrics(two)
    assert (series["turns"], series["searches"]) == (2.5, 1.0)
    assert series["valid_actions"] == 3 / 5  # two answered searches and an answer, of five turns
    assert series["duplicate_queries"] == 1 / 2
    assert (series["exact_match"], series["answers"], series["valid_format"]) == (0.5, 0.5, 0.5)
    assert series["gold_in_documents"] == 1.0
    assert (series["truncated"], series["stop/turns_used"], series["stop/answered"]) == (0.5, 0.5, 0.5)
    assert sum(series[f"stop/{stop.value}"] for stop in StopReason) == 1.0


def test_lengths_count_tokens_by_their_author() -> None:
    series = rollout_metrics([sample(("turn", 5), ("observation", 10), ("turn", 5)), sample(("turn", 4))])
    assert (series["response_length"], series["response_length_max"]) == (12.0, 20.0)
    assert (series["trained_tokens"], series["observation_tokens"]) == (7.0, 5.0)
    assert series["observation_share"] == 10 / 24


def test_log_prob_and_repetition_are_those_of_the_models_own_tokens_even_with_the_simple_mask() -> None:
    odd = sample(("turn", 6), ("observation", 8), loss_mask=[1] * 14, rollout_log_probs=[-0.25] * 6 + [-9.0] * 8)
    odd.tokens[2:] = [7] * 6 + [8] * 8
    series = rollout_metrics([odd])
    assert series["log_prob"] == -0.25
    assert series["repetition"] == pytest.approx(2 / 3)  # three 4-grams, one of them different


def test_repetition_is_one_less_the_part_of_n_grams_that_are_different() -> None:
    assert repetition([1, 2, 3]) is None
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)  # 1234 2341 3412 4123 1234
    assert repetition([1] * 103) == 0.99


def test_search_latency_leaves_out_what_the_cache_answered() -> None:
    waited = [search(str(number), number / 10) for number in range(1, 21)]  # 0.1 to 2.0 seconds
    waited[0] |= {"error": "no answer"}
    cached = [search("a", 0.0, "cache"), search("b", 0.0, "cache")]
    shared = [search("c", 0.5, "shared")]
    series = rollout_metrics([sample(searches=waited), sample(searches=cached), sample(searches=shared)])
    assert series["search_seconds"] == pytest.approx((21.0 + 0.5) / 21)
    assert series["search_seconds_p95"] == 1.9  # the 20th of 21
    assert series["searches_failed"] == 1 / 23
    assert series["cache_hits"] == 3 / 23


def test_a_discarded_sample_is_counted_but_left_out_of_the_models_figures() -> None:
    lost = discarded()
    lost.metadata["search_r1"]["search_counts"] |= {"queries": 1, "failed": 1}
    series = rollout_metrics([sample(("turn", 5), score=RIGHT), lost])
    assert (series["discarded"], series["stop/engine_failed"], series["truncated"]) == (0.5, 0.5, 0.0)
    assert (series["exact_match"], series["response_length"], series["turns"]) == (1.0, 5.0, 1.0)
    assert series["searches_failed"] == 1.0


def test_groups_without_variance_are_split_into_right_and_wrong() -> None:
    groups = [
        [sample(group_index=0, reward=1.0, score=RIGHT) for _ in range(2)],
        [sample(group_index=1, reward=0.0, score=WRONG) for _ in range(2)],
        [sample(group_index=2, reward=1.0, score=RIGHT), sample(group_index=2, reward=0.0, score=WRONG)],
        [sample(group_index=3, reward=1.0, score=RIGHT), discarded(group_index=3, reward=0.0)],  # one is left
        [sample(group_index=4, reward=1.0, score=RIGHT)],  # nothing to compare with
        [sample(group_index=None, reward=1.0, score=RIGHT)],
    ]
    expected = {"zero_variance_groups": 3 / 4, "zero_variance_right": 2 / 4, "zero_variance_wrong": 1 / 4}
    assert rollout_metrics(groups).items() >= expected.items()
    assert rollout_metrics([one for group in groups for one in group]) == rollout_metrics(groups)


def test_a_reward_may_be_one_of_several() -> None:
    pair = [sample(group_index=0, reward={"em": 0.0, "f1": value}, score=WRONG) for value in (0.1, 0.2)]
    assert rollout_metrics(pair, "em")["zero_variance_wrong"] == 1.0
    assert rollout_metrics(pair, "f1")["zero_variance_groups"] == 0.0
    assert "zero_variance_groups" not in rollout_metrics(pair)


def test_without_data_there_is_no_series_and_never_a_nan() -> None:
    assert rollout_metrics([]) == {}
    assert rollout_metrics([Sample(), Sample(metadata={"search_r1": {}})]) == {"unrecorded": 1.0}
    unscored = rollout_metrics([sample(("turn", 3), rollout_log_probs=None, reward=None)])
    assert not {"exact_match", "answers", "log_prob", "repetition", "search_seconds", "cache_hits"} & set(unscored)
    nan = rollout_metrics([sample(("turn", 3), rollout_log_probs=[math.nan] * 3)])
    assert "log_prob" not in nan and nan["turns"] == 1.0


def test_the_cost_is_that_of_the_calls_since_the_last_entry() -> None:
    before = {"search/calls": 100, "search/usd": 0.1}
    after = {"search/calls": 300, "search/usd": 0.3}
    cost = search_cost(after, since=before)
    assert cost == pytest.approx({"search_calls": 200, "search_usd": 0.2, "search_usd_total": 0.3})
    free = {"search/calls": 7, "search/usd": 0.0}
    assert search_cost(free, since=free) == {"search_calls": 0}


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ("tokens", "response_length", "loss_mask", "rollout_log_probs", "reward", "metadata", "group_index", "status")
INFO = ("version", "stop_reason", "spans", "turns", "search_counts", "search_seconds", "score")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(FIELDS + INFO), ODD), min_size=1, max_size=4), st.booleans())
def test_no_odd_sample_raises_or_makes_a_nan(changes: list[tuple[str, Any]], in_group: bool) -> None:
    odd = copy.deepcopy(sample(("turn", 3), ("observation", 2), searches=[search("a")], score=RIGHT, group_index=0))
    for name, value in changes:
        if name in FIELDS:
            setattr(odd, name, value)
        elif isinstance(odd.metadata, dict) and "search_r1" in odd.metadata:
            odd.metadata["search_r1"][name] = value
    sound = sample(("turn", 5), group_index=0, score=WRONG, reward=0.0)
    series = rollout_metrics([[sound, odd], None, 3, "text"] if in_group else [sound, odd], "em")
    assert all(type(value) is float and math.isfinite(value) for value in series.values())
    assert series["unrecorded"] < 1.0 and series["turns"] >= 0.0


def test_the_documentation_describes_every_series_and_no_other() -> None:
    full = rollout_metrics([sample(("turn", 5), searches=[search("a")], score=RIGHT, group_index=0)] * 2)
    full |= search_cost({"search/calls": 1, "search/usd": 1.0}, since={"search/calls": 0, "search/usd": 0.0})
    full |= FilterStep().series("reward")
    page = (Path(__file__).resolve().parents[2] / "docs" / "METRICS.md").read_text(encoding="utf-8")
    described = re.findall(r"^\| `([a-z0-9_/*]+)` \| [^|]+ \|$", page, flags=re.MULTILINE)
    assert {re.sub("^(stop|groups_dropped)/.*", r"\1/*", name) for name in full} == set(described)
