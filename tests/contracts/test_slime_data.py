"""Prepared data, loaded as slime loads it, rolled out and rewarded. As in test_slime.py: SLIME_DIR names a real one."""

import inspect
import json

import pandas as pd
import pytest
from chat_helpers import END, call, tool_tokenizer
from fakes import FakeEngine, FakeRetriever, Turn, slime_args
from row_fixtures import ROWS
from test_slime import CALL_ARGS, slime_state, unused_packages  # noqa: F401  (a fixture for this module, too)

import oai_format_data_preprocess
from qa_em_format import gold_answers
from search_rollout.protocols.chat_template import render_prompt
from search_rollout.protocols.prompts import SEARCH_TOOL, prompt_of
from search_rollout.protocols.tools import tools_of

pytestmark = pytest.mark.filterwarnings("default")
TOKENIZER = tool_tokenizer()
PLAIN = [row for row in ROWS if "array" not in row.name]  # numpy has no JSON


@pytest.fixture
def prepare(tmp_path):
    """Prepares the fixtures' rows; gives the file's path."""

    def run(form):
        raw = tmp_path / "own.jsonl"
        raw.write_text("".join(json.dumps(row.raw) + "\n" for row in PLAIN), encoding="utf-8")
        arguments = ["--input", str(raw), "--local_dir", str(tmp_path / form), "--format", form]
        assert oai_format_data_preprocess.main(arguments) == 0
        return str(tmp_path / form / "train.parquet")

    return run


def load(path, *, template=False, tool_key=None):
    """The file's Samples as slime's own Dataset makes them."""
    from slime.utils.data import Dataset

    names = inspect.signature(Dataset.__init__).parameters
    positional = [path, TOKENIZER, *([None] if "processor" in names else []), None]
    keys = {"prompt_key": "prompt", "label_key": "reward_model", "metadata_key": "metadata", "tool_key": tool_key}
    return Dataset(*positional, **keys, apply_chat_template=template, apply_chat_template_kwargs={}).samples


def old_shapes(path):
    """The rows as slime v0.2.0 reads them: through pandas, which makes arrays of lists."""
    return [row.to_dict() for _, row in pd.read_parquet(path, dtype_backend="pyarrow").iterrows()]


def messages_of(prompt):
    return [dict(message) for message in prompt]


@pytest.mark.parametrize("tool_key", [None, "tools"])
def test_chat_data_gives_messages_tools_and_labels(prepare, tool_key):
    samples = load(prepare("chat"), tool_key=tool_key)
    assert len(samples) == len(PLAIN)
    for sample, row in zip(samples, PLAIN, strict=True):
        assert messages_of(sample.prompt) == prompt_of(row.question, "chat")
        assert tools_of(sample.metadata) == [SEARCH_TOOL]
        assert gold_answers(sample.label) == row.golds


def test_xml_data_gives_the_rendered_text(prepare):
    samples = load(prepare("xml"), template=True)
    for sample, row in zip(samples, PLAIN, strict=True):
        assert sample.prompt == render_prompt(TOKENIZER, prompt_of(row.question, "generate"))
        assert gold_answers(sample.label) == row.golds


def test_text_data_is_passed_on_unchanged(prepare):
    for sample, row in zip(load(prepare("text")), PLAIN, strict=True):
        assert sample.prompt == prompt_of(row.question, "text")


def test_the_old_shapes_of_v0_2_0_hold_the_same(prepare):
    for old, row in zip(old_shapes(prepare("chat")), PLAIN, strict=True):
        assert messages_of(old["prompt"]) == prompt_of(row.question, "chat")
        assert gold_answers(old["reward_model"]) == row.golds
        assert json.loads(old["tools"]) == json.loads(old["metadata"]["tools"]) == [SEARCH_TOOL]


def turns_of(form, gold):
    if form == "chat":
        return [f"<think>x</think>{call('query')}{END}", f"<think>y</think><answer>{gold}</answer>{END}"]
    return ["<think>x</think><search>query</search>", f"<think>y</think><answer>{gold}</answer>"]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("form", ["chat", "xml", "text"])
async def test_a_rollout_of_each_row_that_gives_its_gold_answer_earns_one(prepare, monkeypatch, form, old):
    from slime.rollout import sglang_rollout
    from slime.utils.types import Sample

    import generate_with_search

    path = prepare(form)
    if old and form != "xml":
        rows = old_shapes(path)
        samples = [Sample(prompt=r["prompt"], label=r["reward_model"], metadata=r["metadata"]) for r in rows]
    else:
        samples = load(path, template=form == "xml", tool_key="tools" if form == "chat" else None)
    state = slime_state(TOKENIZER, False)
    monkeypatch.setattr(sglang_rollout, "GenerateState", lambda args: state)
    monkeypatch.setattr(generate_with_search, "GenerateState", lambda args: state)
    for sample, row in zip(samples, PLAIN, strict=True):
        script = [Turn(turn) for turn in turns_of(form, row.golds[0])]
        async with FakeEngine(TOKENIZER, script) as engine, FakeRetriever() as retriever:
            args = slime_args(
                **CALL_ARGS,
                llm_api_mode="chat" if form == "chat" else "generate",
                custom_generate_function_path="generate_with_search.generate",
                custom_rm_path="generate_with_search.reward_func",
                sglang_router_port=engine.port,
                retrieval_server_url=retriever.url,
            )
            try:
                done = await sglang_rollout.generate_and_rm(args, sample, {"max_new_tokens": 512, "stop": None})
            finally:
                await generate_with_search.close()
        assert done.reward == 1.0, (row.name, done.metadata["search_r1"])
