"""Preflight finds each planted mistake and nothing else; the row names the mistake and its remedy."""

import asyncio
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from preflight_helpers import CONFIG, Machine, data_rows, marked, write_safetensors
from router_fakes import HERMES

from search_rollout.search.cache import SearchCache

Change = Callable[[Machine], None]  # plants a mistake on a good machine


def setting(**variables: str) -> Change:
    """A mistake in the environment."""
    return lambda machine: machine.environment.update(variables)


def yaml(text: str) -> Change:
    return lambda machine: machine.write_yaml(text)


def evaluation_sets(text: str) -> Change:
    def change(machine: Machine) -> None:
        path = machine.folder / "eval.yaml"
        path.write_text(text)
        machine.environment |= {"EVAL_INTERVAL": "5", "EVAL_CONFIG": str(path)}

    return change


def remove(name: str) -> Change:
    def change(machine: Machine) -> None:
        path = machine.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def write(name: str, text: str) -> Change:
    def change(machine: Machine) -> None:
        (machine.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (machine.folder / name).write_text(text)

    return change


def in_chat_mode(*changes: Change) -> Change:
    def change(machine: Machine) -> None:
        machine.environment["LLM_API_MODE"] = "chat"
        machine.write_data("chat")
        for one in changes:
            one(machine)

    return change


def template(text: str | None) -> Change:
    return lambda machine: machine.write_template(text)


def rows(first: dict, count: int = 5) -> Change:
    """PROMPT_DATA whose first row has other values."""

    def change(machine: Machine) -> None:
        made = data_rows("generate")[:count]
        made[0] |= first
        machine.write_data("generate", made)

    return change


def a_megatron_checkpoint(machine: Machine) -> None:
    machine.environment["HF_CHECKPOINT"] = str(machine.reference)


def a_missing_shard(machine: Machine) -> None:
    (machine.model / "model.safetensors").rename(machine.model / "model-1.safetensors")
    machine.write_json(
        "model.safetensors.index.json", {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    )


def a_taken_port(machine: Machine) -> None:
    machine.open.enter_context(socket.create_server(("127.0.0.1", int(machine.environment["RAY_PORT"]))))


def a_prompt_that_the_template_refuses(machine: Machine) -> None:
    refusal = "{% if 'Salve' in messages[0].content %}{{ raise_exception('no Latin') }}{% endif %}"
    machine.write_template(HERMES + refusal)
    rows({"prompt": [{"role": "user", "content": "Salve! <search> <answer>"}]})(machine)


def tools_without_a_name(machine: Machine) -> None:
    made = data_rows("chat")
    made[0]["tools"] = '[{"type": "function"}]'
    machine.write_data("chat", made)


def no_log_probs_on_a_slime_that_needs_them(machine: Machine) -> None:
    machine.environment["TRACK_LOG_PROBS"] = "false"
    arguments = machine.slime / "slime" / "utils" / "arguments.py"
    arguments.parent.mkdir()
    arguments.write_text('parser.add_argument("--custom-advantage-function-path")')


def the_retriever_as_router(machine: Machine) -> None:
    machine.environment["TOKEN_TRACKING_MODE"] = "router_radix"
    machine.environment["TOKEN_ROUTER_URL"] = machine.environment["RETRIEVAL_SERVER_URL"]


def the_retriever_as_cluster(machine: Machine) -> None:
    machine.environment["RAY_ADDRESS"] = machine.environment["RETRIEVAL_SERVER_URL"]


def a_used_budget(machine: Machine) -> None:
    path = machine.folder / "searches.db"

    async def use() -> None:
        cache = SearchCache(str(path), "", max_age_s=1.0)
        while await cache.take_call(3):
            pass
        await cache.close()

    asyncio.run(use())
    machine.environment |= {"SEARCH_CACHE": str(path), "SEARCH_BUDGET": "3"}


LONG = [{"role": "user", "content": "<search> <answer>" + "x" * 9000}]
SPOILT_HISTORY = HERMES.replace(
    "{{ m.content }}\n</tool_response>", "{{ messages | length }}{{ m.content }}\n</tool_response>"
)
# The change, the row that reports it, and words from its finding and from its remedy.
MISTAKES: dict[str, tuple[Change, str, str, str]] = {
    "not a number": (
        setting(NUM_GPUS="two"),
        "settings: launch settings",
        "NUM_GPUS has value 'two'",
        "unset it",
    ),
    "a missing YAML": (
        setting(CUSTOM_CONFIG_PATH="/no.yaml"),
        "settings: yaml",
        "/no.yaml cannot be read",
        "CUSTOM_CONFIG_PATH",
    ),
    "not YAML settings": (yaml("- 1\n- 2\n"), "settings: yaml", "key: value", "correct the file"),
    "modes in the YAML only": (
        yaml("llm_api_mode: chat\n"),
        "settings: modes",
        "LLM_API_MODE=generate",
        "export LLM_API_MODE=chat",
    ),
    "an unknown mode": (setting(LLM_API_MODE="chats"), "settings: values", "one of generate, chat", "CONFIGURATION"),
    "an invalid pair of modes": (
        setting(TOKEN_TRACKING_MODE="router_handler"),
        "settings: values",
        "NOT compatible",
        "CONFIGURATION",
    ),
    "too long for a GPU": (yaml("max_context_length: 20000\n"), "settings: context length", "20000", "9216 or less"),
    "a group of one": (setting(N_SAMPLES_PER_PROMPT="1"), "settings: batch", "GRPO", "at least 2"),
    "a batch that does not divide": (
        setting(GLOBAL_BATCH_SIZE="7"),
        "settings: batch",
        "does not divide",
        "unset GLOBAL_BATCH_SIZE",
    ),
    "a reward key in the YAML": (yaml("reward_key: score\n"), "settings: reward key", "reward_key: score", "remove it"),
    "a reward key on the command line": (
        lambda machine: machine.train_args.extend(["--eval-reward-key", "score"]),
        "settings: reward key",
        "--eval-reward-key",
        "remove it",
    ),
    "no model": (setting(HF_CHECKPOINT="/no/model"), "model: folder", "/no/model", "hf download"),
    "a Megatron folder as model": (a_megatron_checkpoint, "model: folder", "is a Megatron checkpoint", "REF_LOAD"),
    "GGUF": (setting(HF_CHECKPOINT="/x/model.gguf"), "model: folder", "GGUF", "download"),
    "a missing shard": (a_missing_shard, "model: weights", "1 of 2 weight files are missing: model-2", "download"),
    "half a file of weights": (
        lambda machine: write_safetensors(machine.model / "model.safetensors", missing_bytes=3),
        "model: weights",
        "damaged",
        "download",
    ),
    "a Git LFS pointer": (
        write("the model/model.safetensors", "version https://git-lfs"),
        "model: weights",
        "LFS pointer",
        "download",
    ),
    "no tokenizer": (
        remove("the model/tokenizer.json"),
        "model: tokenizer",
        "tokenizer",
        "copy the model's tokenizer files",
    ),
    "another model's arguments": (
        write("slime/scripts/models/qwen2.5-3B.sh", "MODEL_ARGS=(--num-layers 28 --hidden-size 2048)"),
        "model: model arguments",
        "--num-layers 28, but num_hidden_layers 36",
        "MODEL_ARGS_FILE",
    ),
    "no reference": (remove("reference"), "model: reference", "reference (REF_LOAD)", "convert_hf_to_torch_dist.py"),
    "an incomplete reference": (remove("reference/release"), "model: reference", "release/ is missing", "convert"),
    "nothing to resume from": (setting(LOAD_DIR="/no/such"), "model: load", "/no/such has no latest", "LOAD_DIR"),
    "saving into a file": (setting(SAVE_DIR="/etc/passwd"), "model: save", "is not a folder", "SAVE_DIR"),
    "no chat template": (template(None), "template: chat template", "no chat template", "APPLY_CHAT_TEMPLATE=0"),
    "a template that refuses our prompt": (
        template("{{ raise_exception('no user turns') }}"),
        "template: chat template",
        "the chat template refuses our prompt: no user turns",
        "Qwen2.5",
    ),
    "a prompt that the template refuses": (
        a_prompt_that_the_template_refuses,
        "data: prompt length",
        "the chat template refuses a prompt: no Latin",
        "correct that prompt",
    ),
    "a template without tools": (
        in_chat_mode(template(HERMES.replace("{% if tools %}", "{% if false %}"))),
        "template: tools",
        "leaves out",
        "Qwen2.5",
    ),
    "a template that counts": (
        in_chat_mode(template(SPOILT_HISTORY)),
        "template: appending",
        "differently",
        "Qwen2.5",
    ),
    "a template that drops tool messages": (
        in_chat_mode(template(HERMES.replace("<tool_response>\n{{ m.content }}", "<tool_response>\n"))),
        "template: appending",
        "leaves out the content of a tool message",
        "Qwen2.5",
    ),
    "a template that drops calls": (
        in_chat_mode(template(HERMES.replace("{% for c in m.tool_calls or [] %}", "{% for c in [] %}"))),
        "template: tools",
        "leaves out an assistant's tool calls",
        "SEARCH_R1_TOOL_CALL_FORMAT",
    ),
    "a family that the template is not of": (
        in_chat_mode(setting(SEARCH_R1_TOOL_CALL_FORMAT="llama3")),
        "template: tools",
        "writes tool calls that llama3 does not read",
        "auto",
    ),
    "a turn that does not end": (
        template(HERMES.replace("<|im_end|>", "<|endoftext|>")),
        "template: end of turn",
        "<|endoftext|>",
        "generation_config",
    ),
    "no data": (
        setting(PROMPT_DATA="/no/train.parquet"),
        "data: file",
        "/no/train.parquet",
        "--format xml --local_dir /no",
    ),
    "data in another format": (
        setting(PROMPT_DATA="/no/train.csv"),
        "data: file",
        "neither .parquet nor .jsonl",
        "PROMPT_DATA",
    ),
    "damaged data": (
        write("train.parquet", "PAR1 no"),
        "data: file",
        "cannot be read",
        "oai_format_data_preprocess.py",
    ),
    "no rows in the slice": (
        lambda machine: machine.environment.update(PROMPT_DATA=f"{machine.data}@[9:]"),
        "data: file",
        "none of the 5",
        "PROMPT_DATA",
    ),
    "fewer rows than a step": (setting(ROLLOUT_BATCH_SIZE="8"), "data: rows", "5 rows", "ROLLOUT_BATCH_SIZE to 5"),
    "texts in chat mode": (
        in_chat_mode(lambda machine: machine.write_data("text")),
        "data: prompts",
        "needs messages",
        "--format chat",
    ),
    "tools in another form": (
        in_chat_mode(tools_without_a_name),
        "data: prompts",
        "the tools of row 0 are not in OpenAI's form: a tool has no name",
        "--format chat",
    ),
    "messages without a template": (
        setting(APPLY_CHAT_TEMPLATE="0"),
        "data: prompts",
        "list of messages",
        "APPLY_CHAT_TEMPLATE=1",
    ),
    "no gold answer": (
        rows({"reward_model": {"ground_truth": {"target": []}}}),
        "data: gold answer",
        "no gold answer",
        "ground_truth",
    ),
    "a long prompt": (rows({"prompt": LONG}), "data: prompt length", "less than the 756", "max_context_length"),
    "no evaluation data": (
        setting(EVAL_INTERVAL="5", EVAL_DATA="/no/test.parquet@[0:9]"),
        "data: evaluation",
        "/no/test.parquet",
        "EVAL_DATA",
    ),
    "no evaluation sets": (
        setting(EVAL_INTERVAL="5", EVAL_CONFIG="/no/eval.yaml"),
        "data: evaluation",
        "/no/eval.yaml cannot be read",
        "EVAL_CONFIG",
    ),
    "evaluation sets without data": (
        evaluation_sets('{"eval": {"datasets": [{"name": "nq", "path": "/no/nq.parquet"}]}}'),
        "data: evaluation",
        "there is no file /no/nq.parquet",
        "prepare the data",
    ),
    "evaluation sets in another form": (
        evaluation_sets("eval: [nq]"),
        "data: evaluation",
        "no eval.datasets",
        "EVAL_CONFIG",
    ),
    "no log-probabilities to train on": (
        no_log_probs_on_a_slime_that_needs_them,
        "settings: log probs",
        "one update a step",
        "TRACK_LOG_PROBS=true, or GLOBAL_BATCH_SIZE",
    ),
    "no retriever": (
        setting(RETRIEVAL_SERVER_URL="http://127.0.0.1:1"),
        "search: retriever",
        "nothing listens",
        "start_server.sh",
    ),
    "another encoder": (
        setting(RETRIEVER_NAME="e5"),
        "search: index",
        "encoder colours, but RETRIEVER_NAME=e5",
        "RETRIEVER_NAME",
    ),
    "another dimension": (
        lambda machine: machine.environment.update(RETRIEVER_MODEL=str(machine.model)),
        "search: index",
        "3 dimensions",
        "RETRIEVER_MODEL",
    ),
    "no key for web search": (
        setting(SEARCH_BACKEND="google"),
        "search: first search",
        "GOOGLE_API_KEY is not set",
        "serper.dev",
    ),
    "nothing to replay": (
        setting(SEARCH_CACHE="/no/searches.db", SEARCH_CACHE_MODE="replay"),
        "search: cache",
        "/no/searches.db",
        "SEARCH_CACHE",
    ),
    "a used-up budget": (a_used_budget, "search: budget", "3 of SEARCH_BUDGET=3", "raise SEARCH_BUDGET"),
    "a retriever as router": (
        the_retriever_as_router,
        "router: token router",
        "not a token router",
        "-m token_router",
    ),
    "more GPUs than there are": (setting(NUM_GPUS="8"), "machine: gpus", "NUM_GPUS=8, but there are 2", "NUM_GPUS"),
    "a GPU that is not there": (
        setting(CUDA_VISIBLE_DEVICES="0,7"),
        "machine: gpus",
        "no GPU 7",
        "CUDA_VISIBLE_DEVICES",
    ),
    "a shared GPU": (
        setting(RETRIEVER_GPUS="1"),
        "machine: gpu sharing",
        "GPU 1 serves both RETRIEVER_GPUS=1 and training",
        "CUDA_VISIBLE_DEVICES=0",
    ),
    "a taken port": (a_taken_port, "machine: ports", "RAY_PORT=", "other numbers"),
    "not a cluster": (
        the_retriever_as_cluster,
        "machine: ray cluster",
        "is not Ray",
        "http://HEAD:8265",
    ),
    "the cluster's other port": (
        setting(RAY_ADDRESS="10.0.0.1:6379"),
        "machine: ray cluster",
        "dashboard",
        "http://HEAD:8265",
    ),
    "a disk that is too small": (
        lambda machine: (
            machine.write_json("model.safetensors.index.json", {"weight_map": {"a": "big.safetensors"}})
            or sparse_weights(machine.model / "big.safetensors", 2**41)
        ),
        "machine: disk",
        "a checkpoint with its optimizer takes about",
        "more space",
    ),
    "a missing Python": (setting(PYTHON="python9"), "packages: python", "python9", "set PYTHON"),
    "no Megatron": (setting(MEGATRON_DIR="/no"), "packages: trainers", "Megatron-LM in /no", "MEGATRON_DIR"),
    "no SGLang": (remove("packages/sglang"), "packages: trainers", "no package sglang", "slime's image"),
    "no slime": (remove("slime/train.py"), "packages: slime", "no train.py", "SLIME_DIR"),
    "no ray": (remove("programs/ray"), "packages: ray", "no command ray", "pip install"),
}


def sparse_weights(path: Path, numbers: int) -> None:
    """A sparse file whose header declares this many numbers."""
    write_safetensors(path, numbers=1)
    header = (
        path.read_bytes()[8:-2]
        .replace(b"[1]", f"[{numbers}]".encode())
        .replace(b"[0, 2]", f"[0, {2 * numbers}]".encode())
    )
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + 2 * numbers)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_found_and_nothing_else(machine: Machine, name: str) -> None:
    change, row, found, remedy = MISTAKES[name]
    change(machine)
    wrong = marked(machine.look(), "✗")
    assert list(wrong) == [row], wrong
    said, _, advice = wrong[row].partition(" → ")
    assert found in said and remedy in advice, wrong


WARNINGS: dict[str, tuple[Change, str, str]] = {
    "the simple mask": (setting(LOSS_MASK_MODE="simple"), "settings: loss mask", "documents"),
    "no log-probabilities": (setting(TRACK_LOG_PROBS="false"), "settings: log probs", "TRACK_LOG_PROBS=false"),
    "a misspelt variable": (setting(SEARCH_R1_MAX_TURN="4"), "settings: unknown variables", "SEARCH_R1_MAX_TURNS"),
    "a relative path": (setting(LOAD_DIR="", SAVE_DIR="out"), "settings: paths", "SAVE_DIR=out"),
    "a misspelt key": (yaml("max_turn: 4\n"), "settings: yaml", "did you mean max_turns"),
    "nothing is saved": (setting(SAVE_DIR=""), "model: save", "the trained model is not saved"),
    "a Hugging Face reference": (
        lambda machine: machine.environment.update(REF_LOAD=str(machine.model)),
        "model: reference",
        "newest versions",
    ),
    "prompts without tags": (rows({"prompt": [{"role": "user", "content": "Who?"}]}), "data: instructions", "<search>"),
    "a relative cache": (setting(SEARCH_CACHE="searches.db"), "search: cache", "relative path"),
    "a GPU in use": (setting(USED_MIB="40000"), "machine: gpu memory", "by process 4242 (python)"),
    "no key of W&B": (setting(USE_WANDB="1"), "packages: wandb key", "wandb login"),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_a_setting_that_works_but_may_be_a_mistake_is_a_warning(machine: Machine, name: str) -> None:
    change, row, words = WARNINGS[name]
    change(machine)
    (machine.packages / "wandb").mkdir()
    (machine.packages / "wandb" / "__init__.py").touch()
    rows = machine.look()
    assert marked(rows, "✗") == {}
    assert list(marked(rows, "!")) == [row] and words in marked(rows, "!")[row]


def test_a_tokenizer_that_does_not_give_back_what_it_encoded_is_found(machine: Machine) -> None:
    """As DeepSeek-V3's with transformers 5: its files name a class that splits words in another way."""
    (machine.model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    machine.write_json("config.json", {**CONFIG, "model_type": "llama"})
    said = marked(machine.look(), "✗")["template: chat template"]
    assert "the tokenizer changes our prompt: " in said and "came with the model" in said
