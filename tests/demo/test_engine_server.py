"""SGLang's /generate as the demo's engine serves it: a real HTTP server, a tiny random model, and a plain client."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from demo_helpers import (
    WAIT_S,
    Steps,
    assert_ended,
    plain_greedy,
    plain_log_probs,
    save_model,
    scripted_tokens,
    some_ids,
    tiny_model,
)
from fakes import tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from demo import engine_server
from demo.engine import Engine
from demo.engine_server import serving

SLIME_PARAMS = {  # as slime makes them
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "max_new_tokens": 12,
    "stop": None,
    "stop_token_ids": None,
    "skip_special_tokens": False,
    "no_stop_trim": True,
    "spaces_between_special_tokens": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return tiny_model(tokenizer)


@pytest.fixture(scope="module")
def engine(model: Any, tokenizer: Any) -> Iterator[Engine]:
    with Engine(model, tokenizer, dtype=torch.float32, slots=4, max_length=128) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[httpx.Client]:
    with (
        serving(engine) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=WAIT_S) as client,
    ):
        yield client


def generate(client: httpx.Client, **body: Any) -> dict:
    """A reply; the sampling parameters change slime's."""
    params = SLIME_PARAMS | body.pop("params", {})
    response = client.post("/generate", json={"sampling_params": params, "return_logprob": True} | body)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_reply_to_slimes_parameters_has_the_shape_of_sglangs(
    client: httpx.Client, model: Any, tokenizer: Any
) -> None:
    prompt = some_ids(20)
    reply = generate(client, input_ids=prompt, rid="seven", params={"ignore_eos": True})
    ids, meta = reply["output_ids"], reply["meta_info"]
    assert len(ids) == 12
    assert reply["text"] == tokenizer.decode(ids)
    log_probs = plain_log_probs(model, prompt + ids, 20)
    triples = meta.pop("output_token_logprobs")
    assert [triple[1:] for triple in triples] == [[token, None] for token in ids]
    assert [triple[0] for triple in triples] == pytest.approx(log_probs, abs=1e-4)
    assert meta == {
        "id": "seven",
        "finish_reason": {"type": "length", "length": 12},
        "prompt_tokens": 20,
        "completion_tokens": 12,
        "cached_tokens": 0,
        "weight_version": "0",
    }
    again = generate(client, input_ids=prompt)["meta_info"]
    assert again["cached_tokens"] == 19
    assert again["id"] not in ("", "seven")


def test_log_probs_come_only_when_they_are_asked_for(client: httpx.Client) -> None:
    assert "output_token_logprobs" not in generate(client, input_ids=[5], return_logprob=False)["meta_info"]


def test_text_is_encoded_by_the_engines_tokenizer(client: httpx.Client, model: Any, tokenizer: Any) -> None:
    text = "the capital of Kenya"
    reply = generate(client, text=text, input_ids=None, params={"temperature": 0.0, "max_new_tokens": 4})
    assert reply["meta_info"]["prompt_tokens"] == len(tokenizer.encode(text))
    assert reply["output_ids"] == plain_greedy(model, tokenizer.encode(text), 4)


@pytest.mark.parametrize(("no_stop_trim", "text"), [(True, "capital</search><"), (False, "capital")])
def test_the_stop_string_is_cut_from_the_text_and_never_from_the_ids(
    client: httpx.Client, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, no_stop_trim: bool, text: str
) -> None:
    ids = [*tokenizer.encode("capital</search"), tokenizer.convert_tokens_to_ids("><")]
    with scripted_tokens(monkeypatch, ids):
        reply = generate(client, input_ids=[5], params={"stop": ["</search>"], "no_stop_trim": no_stop_trim})
    assert reply["text"] == text
    assert reply["output_ids"] == ids
    assert len(reply["meta_info"]["output_token_logprobs"]) == len(ids)
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": "</search>"}


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"skip_special_tokens": False, "no_stop_trim": True}, "Kenya<|im_end|>"),
        ({"skip_special_tokens": False, "no_stop_trim": False}, "Kenya"),  # SGLang cuts the matched token as well
        ({"skip_special_tokens": True, "no_stop_trim": True}, "Kenya"),
    ],
)
def test_the_end_of_turn_token_is_in_the_text_if_special_tokens_are_shown(
    client: httpx.Client, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, params: dict, text: str
) -> None:
    ids = [*tokenizer.encode("Kenya"), tokenizer.eos_token_id]
    with scripted_tokens(monkeypatch, ids):
        reply = generate(client, input_ids=[5], params=params)
    assert (reply["text"], reply["output_ids"]) == (text, ids)
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": tokenizer.eos_token_id}


def test_a_stop_string_that_decoding_skips_cuts_nothing_else(
    client: httpx.Client, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tokenizer.encode("Kenya<|im_start|>")
    params = {"stop": ["<|im_start|>"], "no_stop_trim": False, "skip_special_tokens": True}
    with scripted_tokens(monkeypatch, ids):
        assert generate(client, input_ids=[5], params=params)["text"] == "Kenya"


def test_many_requests_at_once_get_their_own_replies(client: httpx.Client, model: Any) -> None:
    prompts = [some_ids(4 + number, seed=number) for number in range(12)]
    params = {"temperature": 0.0, "ignore_eos": True}
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda ids: generate(client, input_ids=ids, params=params), prompts))
    assert [reply["output_ids"] for reply in replies] == [plain_greedy(model, prompt, 12) for prompt in prompts]


def test_health_answers(client: httpx.Client) -> None:
    assert client.get("/health").json() == client.get("/health_generate").json() == {"status": "ok"}


# --- abort --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "ended"), [({"rid": "b"}, {"b"}), ({"abort_all": True}, {"a", "b"})])
def test_abort_request_ends_one_request_or_all(
    client: httpx.Client, engine: Engine, monkeypatch: pytest.MonkeyPatch, order: dict, ended: set
) -> None:
    steps = Steps(engine, monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        calls = {
            name: pool.submit(generate, client, input_ids=[5, ord(name)], rid=name, params={"ignore_eos": True})
            for name in "ab"
        }
        while len(engine._running) + len(engine._waiting) < 2:
            time.sleep(0.005)
        assert client.post("/abort_request", json=order).json() == {}
        steps.allow()
        replies = {name: call.result(WAIT_S) for name, call in calls.items()}
    for name, reply in replies.items():
        kind = "abort" if name in ended else "length"
        assert reply["meta_info"]["finish_reason"]["type"] == kind
        assert len(reply["meta_info"]["output_token_logprobs"]) == len(reply["output_ids"])
        assert (len(reply["output_ids"]) == 12) == (kind == "length")


@pytest.mark.parametrize("body", ["{}", "[]", "no JSON", '{"rid": ""}'])
def test_an_abort_of_nothing_in_particular_is_refused(client: httpx.Client, body: str) -> None:
    response = client.post("/abort_request", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"]


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ([1], "The body must be a JSON object."),
        ({}, "Give either input_ids or text."),
        ({"input_ids": [5], "text": "a"}, "Give either input_ids or text."),
        ({"text": ["a"]}, "text must be a string."),
        ({"text": ""}, "A request needs at least one token"),
        ({"input_ids": []}, "A request needs at least one token"),
        ({"input_ids": 5}, "input_ids must be a list of integers."),
        ({"input_ids": [[5]]}, "input_ids must be a list of integers."),
        ({"input_ids": [5, True]}, "input_ids must be a list of integers."),
        ({"input_ids": [5, 6.0]}, "input_ids must be a list of integers."),
        ({"input_ids": [5, 10**30]}, "outside the model's vocabulary"),
        ({"input_ids": [5] * 128}, "128 input tokens do not fit: the limit is 127."),
        ({"input_ids": [5], "rid": ["a"]}, "rid must be a string"),
        ({"input_ids": [5], "sampling_params": [{}]}, "sampling_params a JSON object"),
        ({"input_ids": [5], "sampling_params": {"min_p": 0.1}}, "['min_p'], which this engine does not know."),
        ({"input_ids": [5], "sampling_params": {"temperature": "hot"}}, "sampling_params.temperature is 'hot'"),
        ({"input_ids": [5], "stream": True}, "does not know ['stream']."),
        ({"input_ids": [5], "return_hidden_states": True}, "does not know ['return_hidden_states']."),
    ],
)
def test_a_request_that_cannot_be_followed_is_refused_with_a_sentence(
    client: httpx.Client, body: Any, sentence: str
) -> None:
    response = client.post("/generate", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == 400
    assert sentence in response.json()["error"]["message"]


@pytest.mark.parametrize("content", [b"no JSON", b"", b"\xff\xfe\x00"])
def test_a_body_that_is_not_json_is_refused(client: httpx.Client, content: bytes) -> None:
    response = client.post("/generate", content=content)
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_a_failing_pass_is_answered_500_and_the_next_request_is_served(
    client: httpx.Client, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine._model.model, "forward", lambda *_, **__: 1 / 0)
        response = client.post("/generate", json={"input_ids": [5]})
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "The engine failed: ZeroDivisionError('division by zero')"
    assert len(generate(client, input_ids=[5], params={"ignore_eos": True})["output_ids"]) == 12


def test_a_closed_engine_is_answered_503_and_its_server_ends_with_the_block(model: Any, tokenizer: Any) -> None:
    engine = Engine(model, tokenizer, dtype=torch.float32, slots=1, max_length=16)
    with serving(engine) as port:
        engine.close()
        url = f"http://127.0.0.1:{port}"
        assert httpx.post(f"{url}/generate", json={"input_ids": [5]}, trust_env=False).status_code == 503
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health", trust_env=False)


# --- the command line ---------------------------------------------------------------------------------------------


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence on stderr of a server that does not start."""
    threads = set(threading.enumerate())
    assert engine_server.main([str(argument) for argument in arguments]) == 1
    assert_ended(set(threading.enumerate()) - threads)
    shown = capsys.readouterr().err
    errors = [line for line in shown.splitlines() if line.startswith("error: ")]  # not transformers' progress bars
    assert len(errors) == 1 and shown.endswith(f"{errors[0]}\n") and "Traceback" not in shown
    return errors[0]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), tokenizer)


def test_a_folder_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(capsys, "--model", tmp_path, "--port", 0)
    assert f"{tmp_path} is not a Hugging Face model folder: it has no config.json." in error


@pytest.mark.parametrize(
    ("file", "content"), [("config.json", "{"), ("model.safetensors", "cut short"), ("tokenizer.json", "[]")]
)
def test_a_model_folder_with_a_broken_file_is_refused(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str
) -> None:
    for path in model_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / file).unlink()
    (tmp_path / file).write_text(content)
    assert f"The model in {tmp_path} cannot be loaded: " in error_of(capsys, "--model", tmp_path, "--port", 0)


def test_a_model_of_another_architecture_is_refused(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=16, n_embd=8, n_layer=1, n_head=1)
    config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    error = error_of(capsys, "--model", tmp_path, "--port", 0)
    assert "holds a GPT2LMHeadModel; the demo trains only Llama-style decoders." in error


def test_a_taken_port_is_named_before_the_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Port {port} cannot be used" in error_of(capsys, "--model", tmp_path / "none", "--port", port)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [(("--port", 70000), "Port 70000 cannot be used"), (("--port", 0, "--slots", 0), "at least 1 slot")],
)
def test_a_number_out_of_range_is_refused(
    model_folder: Path, capsys: pytest.CaptureFixture[str], flags: tuple, sentence: str
) -> None:
    assert sentence in error_of(capsys, "--model", model_folder, *flags)


def test_the_command_serves_a_model_folder(
    model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = []

    def run(self: Any, sockets: list[socket.socket]) -> None:
        served.append((self.config.app, sockets[0].getsockname()[1]))
        raise KeyboardInterrupt  # as uvicorn does when Ctrl-C has stopped it

    monkeypatch.setattr("uvicorn.Server.run", run)
    assert engine_server.main(["--model", str(model_folder), "--port", "0", "--slots", "1"]) == 0
    ((app, port),) = served
    assert {"/generate", "/abort_request", "/health"} <= {route.path for route in app.routes}
    assert capsys.readouterr().out == f"engine: {model_folder} on http://127.0.0.1:{port}\n"
