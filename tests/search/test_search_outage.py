"""256 rollouts at once while the search backend dies and comes back: every Sample stays sound, little time is lost."""

import asyncio
import itertools
import random
import statistics
import time

import pytest
from fakes import FakeEngine, FakeRetriever, Turn, tiny_tokenizer
from rollout_helpers import ANSWER, make_sample, plugin, recorded, roll_out
from slime.utils.types import Sample

import generate_with_search
from search_rollout.protocols.observation import UNAVAILABLE
from search_rollout.search.usage import SearchUsage

TOKENIZER = tiny_tokenizer()
LANES = 256
BUDGET_S = 2.0  # of one search
BACK_WITHIN_S = 1.5  # a probe each second, and a loaded machine


def engine(pace_s: float) -> FakeEngine:
    """A model that searches twice for what nobody searched for before, then answers."""
    numbers, choose = itertools.count(), random.Random(0)

    def turn(request: dict) -> Turn:
        asked = TOKENIZER.decode(request["input_ids"]).count("<information>")
        text = ANSWER if asked == 2 else f"<think>x</think><search>{next(numbers)}</search>"
        return Turn(text, delay_s=choose.uniform(0.5, 1.5) * pace_s)

    return FakeEngine(TOKENIZER, turn)


async def outage(retriever: FakeRetriever, kind: str, after_s: float, for_s: float) -> float:
    """When the backend was back, by time.monotonic()."""
    await asyncio.sleep(after_s)
    if kind == "gone":
        await retriever.stop()
    else:
        retriever.trouble = lambda _: 3600.0
    await asyncio.sleep(for_s)
    if kind == "gone":
        await retriever.start()
    retriever.trouble = None
    return time.monotonic()


@pytest.mark.parametrize(
    ("kind", "dead_s", "pace_s", "after_s"),  # seconds; `after_s`: rollouts go on so long when it is back
    [
        ("gone", 1.2, 0.3, 0.0),
        pytest.param("gone", 20.0, 2.0, 10.0, marks=pytest.mark.slow),
        pytest.param("silent", 20.0, 2.0, 10.0, marks=pytest.mark.slow),
    ],
)
async def test_an_outage_costs_no_sample_and_little_time(monkeypatch, capsys, kind, dead_s, pace_s, after_s):
    monkeypatch.setattr(generate_with_search, "_usage", SearchUsage())
    retriever = FakeRetriever()
    settings = {"search_timeout_s": BUDGET_S, "search_retries": 3, "max_context_length": 4096}
    rolled_out: list[tuple[float, Sample]] = []  # with when it began
    async with plugin(monkeypatch, TOKENIZER, engine(pace_s), retriever, **settings) as (args, _):
        trouble = asyncio.create_task(outage(retriever, kind, after_s=1.5 * pace_s, for_s=dead_s))

        async def lane(number: int) -> None:
            while not trouble.done() or time.monotonic() < trouble.result() + after_s:
                began = time.monotonic()
                sample = await roll_out(args, make_sample(index=number))  # checks that it is aligned
                rolled_out.append((began, sample))

        await asyncio.gather(*map(lane, range(LANES)))
        back = await trouble
        await asyncio.sleep(max(back + BACK_WITHIN_S - time.monotonic(), 0.0))
        again = await roll_out(args, make_sample())

    samples = [sample for _, sample in rolled_out]
    searches = [search for sample in samples for search in recorded(sample).searches]
    failed = [search for search in searches if search.error]
    lost_s = [recorded(sample).search_seconds for sample in samples if recorded(sample).search_counts["failed"]]
    with capsys.disabled():
        print(
            f"\n{kind} for {dead_s:g} s: {len(samples)} samples, {len(failed)} of {len(searches)} searches "
            f"({len(failed) / len(searches):.0%}) failed; seconds that an affected sample spent searching: "
            f"median {statistics.median(lost_s):.3f}, most {max(lost_s):.2f}"
        )
    assert {recorded(sample).stop.value for sample in samples} == {"answered"}
    assert all(len(recorded(sample).searches) == 2 for sample in samples)
    assert sum(sample.response.count(UNAVAILABLE) for sample in samples) == len(failed)
    usage = generate_with_search.search_usage()
    assert (usage["search/queries"], usage["search/failed"]) == (len(searches) + 2, len(failed))
    assert 0 < len(failed) < len(searches)
    assert max(lost_s) < 2 * BUDGET_S + 3.0  # two searches, on a machine with other work
    if dead_s > 10:  # the first second, in which searches are still repeated, no longer counts
        assert statistics.median(lost_s) < 0.1
    assert not recorded(again).search_counts["failed"]  # it is in use again
    if after_s:
        late = [sample for began, sample in rolled_out if began > back + BACK_WITHIN_S]
        assert late and not any(recorded(sample).search_counts["failed"] for sample in late)
