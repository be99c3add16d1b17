"""1,000 groups through slime's own rollout loop: which are kept, dropped and resumed, and that none is lost.

SLIME_DIR=/path/to/slime pytest tests/contracts/test_slime_groups.py

Real: slime's loop, data source, abort and HTTP client, and our hooks. Fake: the engine, which is also the router.
"""

import asyncio
import json
import os
import sys
from collections import Counter

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from fakes import FakeEngine, Turn, slime_args, tiny_tokenizer
from test_slime import CALL_ARGS, unused_packages  # noqa: F401  (a fixture for this module, too)
from test_slime_logging import Args

from search_rollout.samples.record import is_discarded, score_of

pytestmark = [
    pytest.mark.skipif(not os.environ.get("SLIME_DIR"), reason="the stand-in has no rollout loop"),
    pytest.mark.filterwarnings("default"),
]

SAMPLES, BATCH, OVER_SAMPLING = 4, 8, 16
KINDS = ("mixed", "right", "wrong", "right but for an engine failure")
RIGHT, WRONG = "<think>y</think><answer>Nairobi</answer>", "<think>y</think><answer>Mombasa</answer>"
CUT = 12  # characters that an abort leaves of either


class EngineOfKinds(FakeEngine):
    """Answers question N as its kind asks, one sample after the other; an abort cuts the replies under way."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer, self.answer)
        self.aborting = asyncio.Event()
        self.asked = Counter()
        self.failed = set()

    async def __aenter__(self):
        app = web.Application()
        app.router.add_post("/generate", self._generate)
        app.router.add_get("/workers", self._workers)
        app.router.add_post("/abort_request", self._abort)
        app.router.add_get("/v1/loads", self._loads)
        self._server = TestServer(app)
        await self._server.start_server()
        return self

    async def _workers(self, _):
        return web.json_response({"workers": [{"url": f"http://127.0.0.1:{self.port}"}]})

    async def _loads(self, _):
        return web.json_response({"loads": []})

    async def _abort(self, _):
        self.aborting.set()
        return web.json_response({})

    async def answer(self, request):
        number, _, begun = self.tokenizer.decode(request["input_ids"]).removeprefix("Question ").partition("?")
        kind = KINDS[int(number) % len(KINDS)]
        self.asked[number] += 1
        if kind == KINDS[3] and number not in self.failed:
            self.failed.add(number)
            return Turn(status=400, body="no")
        whole = WRONG if kind == "wrong" or (kind == "mixed" and self.asked[number] % 2) else RIGHT
        try:
            await asyncio.wait_for(self.aborting.wait(), 0.03 * (int(number) % 7))
        except TimeoutError:
            return Turn(whole[len(begun) :])
        return Turn(whole[len(begun) : max(CUT, len(begun))], finish="abort")


verdicts: dict[int, tuple[str | None, list]] = {}  # the last one of each group


def noting(args, samples, **kwargs):
    """Our filter, named to slime by its path in this module."""
    import generate_with_search

    output = generate_with_search.keep_group(args, samples, **kwargs)
    verdicts[samples[0].group_index] = output.reason, samples
    return output


@pytest.fixture
def slimes_loop(tmp_path, monkeypatch):
    """Runs steps of slime's loop until it has fetched that many groups; returns outputs, data source and args."""
    from slime.rollout import sglang_rollout

    if not hasattr(sglang_rollout, "call_dynamic_filter"):
        pytest.skip("this slime shows no hook the groups that its filter drops")
    from slime.rollout.data_source import RolloutDataSourceWithBuffer
    from slime.utils import http_utils
    from slime.utils.async_utils import run
    from slime.utils.misc import SingletonMeta

    import generate_with_search

    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    label = {"ground_truth": {"target": ["Nairobi"]}}
    rows = [json.dumps({"prompt": f"Question {number}?", "label": label}) for number in range(5000)]
    (tmp_path / "questions.jsonl").write_text("\n".join(rows))
    monkeypatch.setitem(sys.modules, "contract_groups", sys.modules[__name__])
    monkeypatch.setattr(SingletonMeta, "_instances", {})
    monkeypatch.setattr(http_utils, "_http_client", None)
    if router := sys.modules.get("sglang_router"):
        monkeypatch.setattr(router, "__version__", "0.3.2", raising=False)
    verdicts.clear()

    async def steps(groups, **changes):
        async with EngineOfKinds(tokenizer) as engine:
            values = vars(slime_args(sglang_router_port=engine.port)) | CALL_ARGS
            values |= {
                "hf_checkpoint": str(tmp_path),
                "prompt_data": str(tmp_path / "questions.jsonl"),
                "input_key": "prompt",
                "label_key": "label",
                "metadata_key": "metadata",
                "rollout_global_dataset": True,
                "rollout_batch_size": BATCH,
                "over_sampling_batch_size": OVER_SAMPLING,
                "n_samples_per_prompt": SAMPLES,
                "rollout_temperature": 1.0,
                "rollout_top_p": 1.0,
                "rollout_top_k": -1,
                "rollout_max_response_len": 64,
                "rollout_skip_special_tokens": False,
                "rollout_num_gpus": 1,
                "rollout_num_gpus_per_engine": 1,
                "rollout_seed": 0,
                "sglang_server_concurrency": 64,
                "custom_generate_function_path": "generate_with_search.generate",
                "custom_rm_path": "generate_with_search.reward_func",
                "dynamic_sampling_filter_path": "contract_groups.noting",
                "rollout_all_samples_process_path": "generate_with_search.process_all_groups",
                "group_filter": "reward",
            }
            args = Args(**(values | changes))
            source, outputs = RolloutDataSourceWithBuffer(args), []
            http_utils.init_http_client(args)
            try:
                while source.sample_group_index < groups:
                    engine.aborting.clear()
                    step = asyncio.to_thread(sglang_rollout.generate_rollout, args, len(outputs), source)
                    outputs.append(await asyncio.wait_for(step, 120))
            finally:
                await asyncio.to_thread(run, generate_with_search.close())
                await asyncio.to_thread(run, http_utils._http_client.aclose())
            return outputs, source, args

    return steps


def taught(group):
    """Whether there is anything to learn, by the records of the samples."""
    return len({score_of(sample)["exact_match"] for sample in group if not is_discarded(sample)}) == 2


def indices(groups):
    return [group[0].group_index for group in groups]


async def test_no_group_is_lost_or_trained_twice_and_only_those_that_teach_are_kept(slimes_loop):
    outputs, source, _ = await slimes_loop(1000, partial_rollout=True)
    trained = [group for output in outputs for group in output.samples]
    dropped = {index for index, (reason, _) in verdicts.items() if reason}
    assert len(set(indices(trained))) == len(trained) == BATCH * len(outputs)
    fates = Counter([*indices(trained), *dropped, *indices(source.buffer)])
    assert fates == Counter(range(source.sample_group_index))

    assert all(taught(group) for group in trained)
    assert {index % len(KINDS) for index in indices(trained)} == {0}
    assert not any(taught(group) for reason, group in verdicts.values() if reason)
    counted = Counter(reason for reason, _ in verdicts.values() if reason)
    told: Counter[str] = Counter()
    for output in outputs:
        told.update({name.removeprefix("rollout/dynamic_filter/drop_"): n for name, n in output.metrics.items()})
    assert told == counted and set(told) == {"all_right", "all_wrong"}

    resumed = [sample for group in trained for sample in group if len(sample.weight_versions) > 1]
    assert resumed and all(sample.response in (RIGHT, WRONG) for sample in resumed)


async def test_an_engine_failure_passes_slimes_stock_filter_and_not_ours(slimes_loop):
    from slime.rollout.filter_hub.dynamic_sampling_filters import check_reward_nonzero_std

    _, _, args = await slimes_loop(100, partial_rollout=True)
    failed = [(reason, group) for reason, group in verdicts.values() if any(map(is_discarded, group))]
    assert failed and {group[0].group_index % len(KINDS) for _, group in failed} == {3}
    assert all(reason == "all_right" for reason, _ in failed)
    assert all(check_reward_nonzero_std(args, group).keep for _, group in failed)


async def test_without_partial_rollout_what_is_beyond_the_batch_is_thrown_away(slimes_loop):
    outputs, source, _ = await slimes_loop(200, partial_rollout=False)
    trained = [group for output in outputs for group in output.samples]
    assert source.buffer == [] and len(set(indices(trained))) == len(trained)
    assert len(trained) + sum(reason is not None for reason, _ in verdicts.values()) < source.sample_group_index


async def test_a_step_in_which_nothing_varies_ends_after_its_rounds(slimes_loop, caplog):
    outputs, _, _ = await slimes_loop(1, group_filter="exact_match", group_filter_rounds=3, n_samples_per_prompt=1)
    [step] = outputs
    assert len(step.samples) == BATCH and sum(step.metrics.values()) == 3 * BATCH
    assert "GROUP_FILTER has dropped 24 groups in this step (too_few 24); the last 8 groups" in caplog.text


async def test_a_filter_that_is_off_changes_nothing(slimes_loop):
    outputs, source, _ = await slimes_loop(64, group_filter="off", over_sampling_batch_size=BATCH)
    assert [indices(output.samples) for output in outputs] == [
        list(range(start, start + BATCH)) for start in range(0, source.sample_group_index, BATCH)
    ]
