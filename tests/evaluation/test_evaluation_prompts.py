"""The engine is sent the same in an evaluation as in training, byte for byte: prepared data by both ways."""

import json
from pathlib import Path
from typing import Any

import pytest
from chat_helpers import tool_tokenizer
from evaluation_helpers import CAPITALS
from fakes import FakeEngine, FakeRetriever, Turn
from rollout_helpers import plugin, roll_out
from slime.utils.data import Dataset

import oai_format_data_preprocess
from evaluation.plugin import ask, plugin_args, sample_of_row
from evaluation.questions import mode_of, read_questions

TOKENIZER = tool_tokenizer()
ANSWER = "<think>I know.</think>\n<answer>Accra</answer>"
TRAINING = {  # --format → what slime's command line has besides
    "xml": {"apply_chat_template": True},
    "text": {},
    "chat": {"tool_key": "tools"},
}


@pytest.fixture
def prepared(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A parquet file as users make it."""
    raw = [
        {"question": f"what is  the capital of {country}", "golden_answers": [capital]}
        for country, capital in CAPITALS.items()
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in raw))
    arguments = ["--input", str(tmp_path / "own.jsonl"), "--local_dir", str(tmp_path), "--format", request.param]
    assert oai_format_data_preprocess.main(arguments) == 0
    return tmp_path / "train.parquet"


@pytest.mark.parametrize(("prepared", "keys"), TRAINING.items(), indirect=["prepared"])
async def test_training_and_evaluation_send_the_same_ids(
    prepared: Path, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Dataset(
        str(prepared), TOKENIZER, None, None, prompt_key="prompt", label_key="reward_model", **keys
    ).samples
    questions = read_questions([prepared])
    mode = mode_of(questions)
    engine, retriever = FakeEngine(TOKENIZER, lambda _: Turn(ANSWER)), FakeRetriever()
    api_mode = "chat" if mode == "chat" else "generate"
    async with plugin(monkeypatch, TOKENIZER, engine, retriever, llm_api_mode=api_mode) as (args, _):
        for sample in trained:
            await roll_out(args, sample)
        evaluated = plugin_args(
            model="none",
            engine_url=f"http://127.0.0.1:{engine.port}",
            settings={"llm_api_mode": api_mode, "search_backend": "local", "retrieval_server_url": retriever.url},
            temperature=0.8,
            max_response_len=64,
        )
        params = {"temperature": 0.8, "top_p": 1.0, "top_k": -1, "max_new_tokens": 64}
        samples = [
            await ask(evaluated, sample_of_row(evaluated, TOKENIZER, question.row), dict(params))
            for question in questions
        ]
    count = len(CAPITALS)
    assert len(engine.requests) == 2 * count
    for ours, theirs in zip(engine.requests[count:], engine.requests[:count], strict=True):
        assert ours["input_ids"] == theirs["input_ids"]
        assert ours["sampling_params"]["stop"] == theirs["sampling_params"]["stop"]
    for mine, sample in zip(samples, trained, strict=True):
        assert (mine.prompt, mine.label, mine.tokens) == (sample.prompt, sample.label, sample.tokens)
        assert mine.reward == sample.reward
