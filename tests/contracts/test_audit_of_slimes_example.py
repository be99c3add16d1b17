"""The auditor on rollouts of slime's own search-r1 example: its source, against the fake engine.

    SLIME_DIR=/path/to/slime pytest tests/contracts

Each turn the example sends the text of the whole trajectory, which the engine encodes again. The test sees what the
engine read, and the auditor sees the dump only: both must count the same samples.
"""

import asyncio
import importlib.util
import os
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import pytest
import torch
from audit_helpers import TOKENIZER
from fakes import FakeEngine, FakeGenerateState, Turn, slime_args
from test_slime import unused_packages  # noqa: F401  (a fixture)

from evaluation import audit_tokens

EXAMPLE = Path(os.environ.get("SLIME_DIR", "")) / "examples" / "search-r1"
pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(
        not (os.environ.get("SLIME_DIR") and (EXAMPLE / "generate_with_search.py").is_file()),
        reason="needs SLIME_DIR, with examples/search-r1",
    ),
]
SAMPLES = 256


def example() -> ModuleType:
    """slime's example, with its own qa_em_format in place of ours."""
    names = ("qa_em_format", "generate_with_search")
    ours = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    loaded = {}
    try:
        for name in names:
            spec = importlib.util.spec_from_file_location(f"slimes_{name}", EXAMPLE / f"{name}.py")
            assert spec and spec.loader
            loaded[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(loaded[name])
            sys.modules[name] = loaded[name]
    finally:
        for name in loaded:
            del sys.modules[name]
        sys.modules.update(ours)
    return loaded["generate_with_search"]


def now_and_then_split(text: str, choose: random.Random) -> list[int]:
    """Ids of a text as a model samples them: mostly the tokenizer's own, now and then in smaller pieces."""
    vocabulary = TOKENIZER.get_vocab()
    ids: list[int] = []
    for token in TOKENIZER.encode(text):
        piece = TOKENIZER.convert_ids_to_tokens(token)
        ids += [vocabulary[letter] for letter in piece] if choose.random() < 0.15 else [token]
    return ids


async def rolled_out(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], int]:
    """SAMPLES rewarded samples of the example, and of how many the engine read other tokens than those stored."""
    from rollout_helpers import ANSWER, PARAMS, SEARCH, make_sample  # imports slime

    module, choose, differ = example(), random.Random(0), 0
    monkeypatch.setattr(module, "GenerateState", lambda args: FakeGenerateState(TOKENIZER))

    async def search(query: str) -> str:
        return 'Doc 1(Title: "Kenya") The capital of Kenya is Nairobi.\n'

    def script(request: dict) -> Turn:
        again = "<information>" in TOKENIZER.decode(request["input_ids"])
        text = ANSWER if again or choose.random() < 0.1 else SEARCH
        return Turn(ids=now_and_then_split(text, choose))

    monkeypatch.setattr(module, "search", search)
    engine, samples = FakeEngine(TOKENIZER, script), []
    async with engine, aiohttp.ClientSession() as session:

        async def post(url: str, payload: dict) -> dict:
            """As SGLang reads a text."""
            body = {**payload, "input_ids": TOKENIZER.encode(payload["text"])}
            async with session.post(url, json=body) as reply:
                return await reply.json()

        monkeypatch.setattr(module, "post", post)
        args = slime_args(sglang_router_port=engine.port, partial_rollout=False)
        for number in range(SAMPLES):
            before = len(engine.requests)
            sample = make_sample(index=number, group_index=number // 8)
            sample = await module.generate(args, sample, dict(PARAMS))
            sample.reward = await module.reward_func(args, sample)
            samples.append(sample)
            read = [request["input_ids"] for request in engine.requests[before:]]
            differ += any(sample.tokens[: len(ids)] != ids for ids in read)
    return samples, differ


def test_the_auditor_counts_the_samples_that_were_sampled_from_other_tokens(monkeypatch, tmp_path, capsys):
    samples, differ = asyncio.run(rolled_out(monkeypatch))
    assert SAMPLES / 4 < differ < SAMPLES
    torch.save({"rollout_id": 0, "samples": [sample.to_dict() for sample in samples]}, tmp_path / "rollout_0.pt")
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    command = [str(tmp_path / "rollout_0.pt"), "--tokenizer", str(tmp_path / "tokenizer")]
    assert audit_tokens.main([*command, "--sent", "text"]) == 1
    shown = capsys.readouterr().out
    assert f"✗ text     history           {differ} of {SAMPLES} samples" in shown
    assert shown.count("✗") == 1  # all else is right
    assert audit_tokens.main(command) == 0  # who does not know what was sent is warned
    assert f"! text     history           {differ} of {SAMPLES} samples" in capsys.readouterr().out
