"""pass@k, the majority's answer and the mean of several samples of a question."""

from itertools import combinations

import numpy as np
import pytest

from evaluation.metrics import drawn, majority, pass_at_k, summarise, together

BY_HAND = [  # samples, right, k, 1 - C(n - c, k) / C(n, k)
    (1, 0, 1, 0.0),
    (1, 1, 1, 1.0),
    (4, 1, 1, 1 / 4),
    (4, 1, 2, 1 - 3 / 6),
    (4, 2, 2, 1 - 1 / 6),
    (4, 3, 2, 1.0),  # two wrong ones cannot be drawn
    (4, 1, 4, 1.0),
    (5, 2, 3, 1 - 1 / 10),
    (8, 1, 4, 1 - 35 / 70),
    (10, 3, 5, 1 - 21 / 252),
    (10, 0, 10, 0.0),
]


@pytest.mark.parametrize(("samples", "right", "k", "expected"), BY_HAND)
def test_pass_at_k_agrees_with_a_table_made_by_hand(samples: int, right: int, k: int, expected: float) -> None:
    assert pass_at_k(samples, right, k) == pytest.approx(expected, abs=1e-15)


def test_pass_at_k_agrees_with_scipys_hypergeometric_distribution() -> None:
    stats = pytest.importorskip("scipy.stats")
    for samples in (1, 2, 7, 64, 500):
        for right in {0, 1, samples // 3, samples}:
            for k in {1, samples // 2 or 1, samples}:
                none_right = stats.hypergeom(samples, right, k).pmf(0)
                assert pass_at_k(samples, right, k) == pytest.approx(1 - none_right, abs=1e-9)


def test_pass_at_k_is_the_share_of_all_draws_that_hold_a_right_sample() -> None:
    verdicts = [True, False, False, True, False, False]
    for k in range(1, 7):
        draws = [any(draw) for draw in combinations(verdicts, k)]
        assert pass_at_k(6, 2, k) == pytest.approx(sum(draws) / len(draws))


@pytest.mark.parametrize(("samples", "right", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, 0)])
def test_impossible_counts_are_refused(samples: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match="is not defined"):
        pass_at_k(samples, right, k)


MAJORITIES = [
    (["Nile", "the nile.", "Congo"], [1, 1, 0], 1.0),  # one answer in two spellings
    (["Nile", "Congo", "Congo"], [1, 0, 0], 0.0),
    (["Nile", "Congo"], [1, 0], 0.5),  # a tie: half of the tied answers are right
    (["Nile", "Congo", "Niger"], [1, 0, 0], 1 / 3),
    (["Nile", None, None, None], [1, 0, 0, 0], 1.0),  # no answer, no vote
    ([None, ""], [0, 0], 0.0),
    (["the", "The", "Nile"], [1, 1, 0], 1.0),  # normalisation leaves nothing of it: compared as it stands
    (["长江", "长江", "黄河"], [1, 1, 0], 1.0),
]


@pytest.mark.parametrize(("answers", "right", "expected"), MAJORITIES)
def test_the_majority_is_right_by_hand(answers: list[str | None], right: list[float], expected: float) -> None:
    assert majority(answers, right) == pytest.approx(expected)


def test_the_shown_ks_are_powers_of_two_and_all_samples() -> None:
    assert [drawn(samples) for samples in (1, 2, 3, 8, 10)] == [[], [2], [2, 3], [2, 4, 8], [2, 4, 8, 10]]
    assert list(together([{"em": 1.0, "answer": "x"}] * 4)) == ["em", "pass@2", "pass@4", "majority@4"]


def test_a_single_sample_is_its_own_mean() -> None:
    assert together([{"em": 1.0, "f1": 0.5, "answer": "x"}], ["em", "f1"]) == {"em": 1.0, "f1": 0.5}


def test_the_bootstrap_draws_questions_not_samples() -> None:
    random = np.random.default_rng(0)
    verdicts = (random.random(100) < 0.5).astype(float)
    rows = [together([{"em": verdict, "answer": "x"}] * 8) for verdict in verdicts]  # samples that agree tell no more
    found = summarise({"nq": rows})["nq"]
    single = summarise({"nq": [{"em": verdict} for verdict in verdicts]})["nq"]
    assert found["em"] == single["em"] == found["pass@8"] == found["majority@8"]
