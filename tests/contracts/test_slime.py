"""What the plugin and the demo rely on in slime.

    pytest tests/contracts                        against the demo's stand-in
    SLIME_DIR=/path/to/slime pytest tests/contracts    against a real slime of any version from v0.2.0

The same tests pass for both, which is what makes the stand-in a fair one. Only packages that slime imports for other
purposes, and that need a GPU or a cluster, are replaced by empty ones here.
"""

import argparse
import asyncio
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import os
import sys
import types
from unittest.mock import MagicMock

import pytest

pytestmark = pytest.mark.filterwarnings("default")  # slime's own warnings are not ours to fix

UNUSED_HERE = ("ray", "sglang_router", "sglang", "pybase64", "PIL", "megatron", "pylatexenc", "wandb")


class _Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty module for each unused package that is not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in UNUSED_HERE:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: MagicMock(name=name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module):
        pass


@pytest.fixture(scope="module", autouse=True)
def unused_packages():
    finder = _Empty()
    if os.environ.get("SLIME_DIR"):
        sys.meta_path.append(finder)
    yield
    if finder in sys.meta_path:
        sys.meta_path.remove(finder)


@pytest.fixture
def Sample():
    from slime.utils.types import Sample

    return Sample


def test_a_sample_has_the_fields_that_a_rollout_reads_and_writes_with_these_defaults(Sample):
    sample = Sample()
    expected = {
        "index": None,
        "prompt": "",
        "tokens": [],
        "response": "",
        "response_length": 0,
        "label": None,
        "reward": None,
        "loss_mask": None,
        "rollout_log_probs": None,
        "weight_versions": [],
        "metadata": {},
    }
    assert {name: getattr(sample, name) for name in expected} == expected
    assert sample.status is Sample.Status.PENDING
    for name, default in {"remove_sample": False, "non_generation_time": 0.0, "session_id": None}.items():
        if hasattr(sample, name):  # fields that came with later versions
            assert getattr(sample, name) == default


def test_the_statuses_have_these_names(Sample):
    names = {status.name for status in Sample.Status}
    assert names >= {"PENDING", "COMPLETED", "TRUNCATED", "ABORTED"}


def test_our_record_survives_a_debug_dump(Sample):
    sample = Sample(index=3, status=Sample.Status.TRUNCATED, metadata={"search_r1": {"spans": [["turn", 1]], "é": "é"}})
    again = Sample.from_dict(sample.to_dict())
    assert again.status is Sample.Status.TRUNCATED and again.metadata == sample.metadata and again.index == 3


def test_the_reward_hook_takes_what_slime_gives_it(Sample):
    from slime.utils.misc import load_function

    samples = [
        Sample(reward=1.0),
        Sample(reward=0.0),
        Sample(reward=0.0, metadata={"search_r1": {"stop_reason": "engine_failed"}}),
    ]
    args = argparse.Namespace(
        advantage_estimator="grpo",
        rewards_normalization=True,
        grpo_std_normalization=False,
        n_samples_per_prompt=3,
        rollout_batch_size=1,
        reward_key=None,
    )
    hook = load_function("generate_with_search.reward_post_process")
    assert hook(args, samples) == ([1.0, 0.0, 0.0], [0.5, -0.5, 0.0])


def test_functions_are_loaded_by_their_import_path():
    from slime.utils.misc import load_function

    import generate_with_search

    assert load_function("generate_with_search.generate") is generate_with_search.generate
    assert load_function("generate_with_search.reward_func") is generate_with_search.reward_func


def test_the_hooks_have_the_signatures_that_slime_calls():
    import generate_with_search

    names = list(inspect.signature(generate_with_search.generate).parameters)
    assert names == ["args", "sample", "sampling_params", "evaluation"]
    assert inspect.iscoroutinefunction(generate_with_search.generate)
    assert inspect.iscoroutinefunction(generate_with_search.reward_func)


# A custom generate function and reward model, loaded by path from this very module.
calls: list[tuple] = []


async def fake_generate(args, sample, sampling_params, evaluation=False):
    calls.append(("generate", evaluation, dict(sampling_params)))
    sample.tokens, sample.response, sample.response_length = [1, 2], "x", 1
    sample.reward = args.preset
    sample.status = args.status
    return sample


async def fake_reward(args, sample, **kwargs):
    calls.append(("reward",))
    return 0.5


CALL_ARGS = {
    "partial_rollout": False,
    "mask_offpolicy_in_partial_rollout": False,
    "group_rm": False,
    "rollout_sample_hook_path": None,
    "rollout_sample_hook_paths": None,
}


class _Anything:
    """A context manager of either kind that does nothing."""

    async def __aenter__(self):
        return None

    async def __aexit__(self, *_):
        return None

    __enter__ = __exit__ = lambda *_: None


def slime_state(tokenizer, aborted):
    return types.SimpleNamespace(semaphore=_Anything(), aborted=aborted, dp_rank_context=_Anything, tokenizer=tokenizer)


@pytest.fixture
def call(Sample, monkeypatch):
    """Runs slime's generate_and_rm on one sample with the two functions above."""
    from slime.rollout import sglang_rollout

    sys.modules["contract_functions"] = sys.modules[__name__]
    calls.clear()

    def run(status="COMPLETED", preset=None, aborted=False, evaluation=False):
        state = slime_state(None, aborted)
        monkeypatch.setattr(sglang_rollout, "GenerateState", lambda args: state)
        args = argparse.Namespace(
            **CALL_ARGS,
            custom_generate_function_path="contract_functions.fake_generate",
            custom_rm_path="contract_functions.fake_reward",
            preset=preset,
            status=Sample.Status[status],
        )
        return asyncio.run(
            sglang_rollout.generate_and_rm(args, Sample(index=0, prompt="p"), {"stop": None}, evaluation=evaluation)
        )

    return run


@pytest.fixture
def rolling(Sample, monkeypatch):
    """Our own hooks through slime's generate_and_rm, between the fake engine and the fake retriever."""
    from fakes import FakeEngine, FakeRetriever, slime_args, tiny_tokenizer
    from slime.rollout import sglang_rollout

    import generate_with_search

    tokenizer = tiny_tokenizer()

    @contextlib.asynccontextmanager
    async def between(turns, aborted=False, **changes):
        state = slime_state(tokenizer, aborted)
        monkeypatch.setattr(sglang_rollout, "GenerateState", lambda args: state)
        monkeypatch.setattr(generate_with_search, "GenerateState", lambda args: state)
        async with FakeEngine(tokenizer, turns) as engine, FakeRetriever() as retriever:
            values = {
                **CALL_ARGS,
                "custom_generate_function_path": "generate_with_search.generate",
                "custom_rm_path": "generate_with_search.reward_func",
                "sglang_router_port": engine.port,
                "retrieval_server_url": retriever.url,
            }
            args = slime_args(**values | changes)

            async def roll(sample=None, params=None):
                label = {"ground_truth": {"target": ["Nairobi"]}}
                sample = sample or Sample(index=0, prompt="Capital of Kenya?", label=label)
                params = {"max_new_tokens": 64, "stop": None, **(params or {})}
                return await sglang_rollout.generate_and_rm(args, sample, params)

            try:
                yield roll, state, engine
            finally:
                await generate_with_search.close()

    return between


@pytest.fixture
def roll_out(rolling):
    """One sample through `rolling`."""

    async def run(turns, aborted=False):
        async with rolling(turns, aborted) as (roll, _, _):
            return await roll()

    return run


async def test_our_hooks_fill_slimes_own_sample(roll_out, Sample):
    from fakes import Turn

    search, answer = "<think>x</think><search>Kenya</search>", "<think>y</think><answer>Nairobi</answer>"
    sample = await roll_out([Turn(search), Turn(answer)])
    assert sample.status is Sample.Status.COMPLETED and sample.reward == 1.0
    assert len(sample.loss_mask) == len(sample.rollout_log_probs) == sample.response_length
    assert {0, 1} == set(sample.loss_mask)
    again = Sample.from_dict(sample.to_dict())  # as a debug dump is read back
    assert again.metadata["search_r1"]["stop_reason"] == "answered" and again.tokens == sample.tokens


async def test_a_sample_that_we_discard_keeps_its_preset_reward(roll_out, Sample):
    from fakes import Turn

    sample = await roll_out([Turn(status=400, body="no")])
    assert sample.status is Sample.Status.TRUNCATED and sample.reward == 0.0
    assert sample.loss_mask == [0] and getattr(sample, "remove_sample", True)


async def test_an_aborted_rollout_leaves_slimes_sample_aborted(roll_out, Sample):
    sample = await roll_out([], aborted=True)
    assert sample.status is Sample.Status.ABORTED and sample.reward is None


@pytest.mark.parametrize("masked", [False, True])
async def test_an_aborted_sample_is_resumed_and_its_old_tokens_masked_where_slime_asks(rolling, Sample, masked):
    from fakes import Turn

    search, answer = "<think>x</think><search>Kenya</search>", "<think>y</think><answer>Nairobi</answer>"
    turns = iter([Turn(search), Turn(answer[:12], finish="abort"), Turn(answer[12:])])

    def script(request):
        state.aborted = len(engine.requests) == 2
        return next(turns)

    args = {"partial_rollout": True, "mask_offpolicy_in_partial_rollout": masked}
    async with rolling(script, **args) as (roll, state, engine):
        sample = await roll()
        assert sample.status is Sample.Status.ABORTED and sample.reward is None
        sample = Sample.from_dict(sample.to_dict())
        old, state.aborted = sample.response_length, False
        sample = await roll(sample)
    assert sample.status is Sample.Status.COMPLETED and sample.reward == 1.0
    assert sample.response.startswith(search) and sample.response.endswith(answer)
    assert sample.tokens == engine.requests[2]["input_ids"] + engine.sampled[2]
    assert sample.weight_versions == ["7"] * 3
    new = len(engine.sampled[2])
    assert sample.loss_mask[old:] == [1] * new and (sum(sample.loss_mask) == new) is masked


async def test_top_p_replay_data_are_aligned_with_their_tokens(rolling, Sample):
    from fakes import Turn

    if not hasattr(Sample(), "append_response_tokens"):
        pytest.skip("this slime does not replay top-p")
    search, answer = "<think>x</think><search>Kenya</search>", "<think>y</think><answer>Nairobi</answer>"
    params = {"top_p": 0.9, "custom_params": {"return_top_p_token_ids": True}}
    async with rolling([Turn(search), Turn(answer)], rollout_top_p=0.9) as (roll, _, engine):
        sample = await roll(params=params)
    assert engine.requests[0]["sampling_params"]["custom_params"] == params["custom_params"]
    assert sample.status is Sample.Status.COMPLETED and sample.reward == 1.0
    ids, offsets = [int(token) for token in sample.rollout_top_p_token_ids], list(sample.rollout_top_p_token_offsets)
    assert len(offsets) == sample.response_length + 1 and offsets[-1] == len(ids)
    response = sample.tokens[-sample.response_length :]
    for place, (token, trained) in enumerate(zip(response, sample.loss_mask, strict=True)):
        assert ids[offsets[place] : offsets[place + 1]] == ([token, token + 1] if trained else [])


async def test_an_engine_that_does_not_report_top_p_discards_the_sample_in_words(rolling, Sample, caplog):
    from fakes import Turn

    if not hasattr(Sample(), "append_response_tokens"):
        pytest.skip("this slime does not replay top-p")
    params = {"top_p": 0.9, "custom_params": {"return_top_p_token_ids": True}}
    async with rolling([Turn("<answer>Nairobi</answer>")], rollout_top_p=0.9) as (roll, _, engine):
        engine.reports_top_p = False
        sample = await roll(params=params)
    assert sample.metadata["search_r1"]["stop_reason"] == "engine_failed" and "--rollout-top-p" in caplog.text
    assert len(sample.rollout_top_p_token_ids) == 0 and list(sample.rollout_top_p_token_offsets) == [0, 0]


async def test_the_engines_work_is_counted_in_slimes_own_counters(rolling, Sample):
    from fakes import Turn

    async with rolling([Turn("<search>Kenya</search>"), Turn("<answer>Nairobi</answer>")]) as (roll, _, engine):
        sample = await roll()
    if hasattr(sample, "prefix_cache_info"):
        read = sum(len(request["input_ids"]) for request in engine.requests)
        assert sample.prefix_cache_info.total_prompt_tokens == read


async def test_engine_calls_and_searches_stand_in_slimes_timeline(rolling, Sample):
    from fakes import Turn

    from search_rollout import timeline

    timeline._slime_function.cache_clear()
    async with rolling([Turn("<search>Kenya</search>"), Turn("<answer>Nairobi</answer>")]) as (roll, _, _):
        sample = await roll()
    if timeline._slime_function("trace_span") is None:
        pytest.skip("this slime has no timeline")
    events = sample.trace["events"]
    ours = {event["span_id"]: event for event in events if event["type"] == "span_start"}
    names = [event["name"] for event in ours.values()]
    assert [name for name in names if name in ("sglang_generate", "search", "search_slot")] == [
        "sglang_generate",
        "search",
        "search_slot",
        "sglang_generate",
    ]
    parents = {
        event["name"]: ours[event["parent_span_id"]]["name"] for event in ours.values() if "parent_span_id" in event
    }
    assert parents["search_slot"] == "search" and parents["search"] == "generate_and_rm"
    ended = [event for event in events if event["type"] == "span_end" and event["name"] == "sglang_generate"]
    assert all(event["attrs"]["prompt_tokens"] and event["attrs"]["finish_reason"] == "stop" for event in ended)
    assert len([event for event in events if event["type"] == "span_end"]) == len(ours)


def test_a_finished_sample_is_rewarded(call):
    assert call().reward == 0.5


def test_a_preset_reward_of_zero_is_kept(call):
    assert call(preset=0.0).reward == 0.0
    assert ("reward",) not in calls


def test_an_aborted_sample_is_not_rewarded(call):
    assert call(status="ABORTED").reward is None


def test_nothing_is_generated_once_the_rollout_is_aborted(call, Sample):
    assert call(aborted=True).status is Sample.Status.ABORTED
    assert calls == []


def test_the_evaluation_flag_is_passed_where_slime_knows_it(call):
    from slime.rollout import sglang_rollout

    call(evaluation=True)
    knows = "inspect" in vars(sglang_rollout)
    assert calls[0][1] is (True if knows else False)


def test_slimes_state_can_be_made_from_the_args_of_an_evaluation(tmp_path, monkeypatch):
    from fakes import tiny_tokenizer
    from slime.rollout.sglang_rollout import GenerateState

    from evaluation.plugin import plugin_args

    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    args = plugin_args(
        model=str(tmp_path), engine_url="http://127.0.0.1:1", settings={}, temperature=0.0, max_response_len=64
    )
    monkeypatch.setattr(type(GenerateState), "_instances", {})  # it is a singleton
    state = GenerateState(args)
    assert state.tokenizer.encode("<answer>Nairobi") == tokenizer.encode("<answer>Nairobi")
    assert state.aborted is False
    params = state.sampling_params
    assert (params["temperature"], params["max_new_tokens"], params["stop"]) == (0.0, 64, None)
    assert "custom_params" not in params
