"""The figures of benchmarks/bench_mismatch.py, from numbers that were worked out by hand."""

import math

import pytest
import torch

from benchmarks.bench_mismatch import Trajectory, Turn, effective_share, figures, in_retokenised_turns, retokenised_by


class Words:
    """A tokenizer of single characters, except that `> ` at the end of a text, or before a letter, is one token."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [ord(one) for one in text.replace("> ", "≻")]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids)).replace("≻", "> ")


def trajectory(*turns: Turn, ids: str = "abcd") -> Trajectory:
    return Trajectory("p", [ord("p")], [ord(one) for one in ids], [1] * len(ids), list(turns))


def test_the_effective_share_is_one_for_equal_weights_and_one_in_n_if_one_has_it_all() -> None:
    assert effective_share(torch.tensor([2.0, 2.0, 2.0])) == pytest.approx(1.0)
    assert effective_share(torch.tensor([5.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25)


def test_weights_are_trainer_over_engine_and_counted_by_slimes_bounds() -> None:
    two = [trajectory(Turn(0, [-1.0, -1.0]), Turn(2, [-1.0, -1.0], retokenised=True)), trajectory(Turn(0, [-1.0] * 4))]
    weights = [[1.0, 3.0, 0.4, 1.0], [1.0, 1.0, 1e-5, 1.0]]
    trainer = [torch.tensor([math.log(one) - 1 for one in some]) for some in weights]
    found = figures(two, trainer, [in_retokenised_turns(one) for one in two])
    assert found["trained tokens"] == 8 and found["later turns retokenised"] == 1.0
    assert found["cut by TIS"] == 1 / 8 and found["dropped by MIS"] == 3 / 8
    assert found["trajectories touched by MIS"] == 1.0 and found["trajectories vetoed"] == 0.5
    assert found["largest |Δ|"] == pytest.approx(-math.log(1e-5), rel=1e-4)
    assert found["mean |Δ| where text differs"] == pytest.approx(-math.log(0.4) / 2, rel=1e-4)
    cut = [1.0, 2.0, 0.4, 1.0, 1.0, 1.0, 1e-5, 1.0]
    assert found["effective tokens"] == pytest.approx(sum(cut) ** 2 / (8 * sum(one**2 for one in cut)), rel=1e-4)


@pytest.mark.parametrize(("seen", "share"), [(" xy", 1.0), ("-xy", 0.0)])
def test_a_tokenizer_that_joins_a_turn_with_what_follows_reads_the_text_otherwise(seen: str, share: float) -> None:
    one = trajectory(Turn(0, [0.0] * 2), Turn(5, [0.0]), ids=f"a>{seen}b")
    plain = trajectory(Turn(0, [0.0] * 5), ids="abcde")  # a single turn has no later one
    assert retokenised_by(Words(), Words(), [one, plain]) == share
