"""The encoder by onnxruntime, beside the one by torch, with MiniLM's real weights."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from retriever_fakes import minilm_folder, onnx_minilm_folder, write_corpus

from local_dense_retriever import encoder_choice, export_onnx
from local_dense_retriever.encoder import MAX_PASSAGE_TOKENS
from local_dense_retriever.encoder_choice import load_encoder
from local_dense_retriever.errors import InputError
from local_dense_retriever.onnx_encoder import OnnxEncoder
from local_dense_retriever.torch_encoder import TorchEncoder

pytestmark = pytest.mark.model
ROOT = Path(__file__).parents[2]
WORDS = [
    *"who wrote the Faust of Goethe Žižek 東京 مرحبا 🙂 naïve [MASK] [SEP] CO₂ 3.14 don't ﬁne".split(),
    "\x00",
    "\ufeff",
    "tab\there",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the model that a test may damage."""
    return Path(shutil.copytree(onnx_minilm_folder(), tmp_path / "model"))


def texts() -> list[str]:
    """Of 0 to 400 words, so of more tokens than are read."""
    choose = random.Random(0)
    return ["", " ", "a", *(" ".join(choose.choices(WORDS, k=choose.choice((1, 3, 12, 60, 400)))) for _ in range(60))]


@pytest.mark.parametrize("name", ["minilm", "e5", "bge"])  # the same weights: prefixes and pooling are what differs
def test_the_vectors_are_those_of_torch(name: str) -> None:
    by_onnx, by_torch = OnnxEncoder(name, onnx_minilm_folder()), TorchEncoder(name, minilm_folder())
    assert by_onnx.dim == by_torch.dim == 384
    for kind in ("encode_queries", "encode_passages"):
        ours = getattr(by_onnx, kind)(texts())
        np.testing.assert_allclose(ours, getattr(by_torch, kind)(texts()), atol=2e-5)
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


def test_long_texts_are_cut_to_the_same_tokens() -> None:
    encoder = OnnxEncoder("minilm", onnx_minilm_folder())
    long = "stone " * (2 * MAX_PASSAGE_TOKENS)
    np.testing.assert_allclose(
        encoder.encode_passages([long]), encoder.encode_passages([long + "red " * 50]), atol=1e-6
    )


def test_a_cpu_takes_onnxruntime_where_the_model_has_that_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert isinstance(load_encoder("minilm", str(onnx_minilm_folder())), OnnxEncoder)
    assert isinstance(load_encoder("minilm", minilm_folder()), TorchEncoder)
    assert isinstance(load_encoder("minilm", str(onnx_minilm_folder()), device="cpu"), TorchEncoder)


def test_a_gpu_takes_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_choice, "gpus", lambda: ["cuda:0"])
    monkeypatch.setattr("local_dense_retriever.torch_encoder.TorchEncoder", lambda name, model, *_: (name, model))
    assert load_encoder("minilm", str(onnx_minilm_folder())) == ("minilm", str(onnx_minilm_folder()))


def test_a_cpu_without_onnxruntime_takes_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    find = encoder_choice.importlib.util.find_spec
    monkeypatch.setattr(encoder_choice.importlib.util, "find_spec", lambda name: None if "onnx" in name else find(name))
    assert isinstance(load_encoder("minilm", str(onnx_minilm_folder()), batch_size=4), TorchEncoder)


@pytest.mark.parametrize("file", ["onnx/model.onnx", "tokenizer.json"])
def test_a_damaged_file_is_reported_in_one_sentence_that_names_the_folder(folder: Path, file: str) -> None:
    (folder / file).write_bytes((folder / file).read_bytes()[:1000])
    with pytest.raises(InputError, match=f"cannot load the encoder {folder} ") as caught:
        load_encoder("minilm", str(folder))
    assert "\n" not in str(caught.value)


def test_a_model_without_token_states_is_refused(folder: Path) -> None:
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.save(model, folder / "onnx" / "model.onnx")
    with pytest.raises(InputError, match="is not a text encoder"):
        load_encoder("minilm", str(folder))


def test_exporting_leaves_nothing_unfinished_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "onnx" / "model.onnx").unlink()
    monkeypatch.setattr(export_onnx, "MAX_DIFFERENCE", -1.0)
    assert export_onnx.main([str(folder)]) == 1
    assert "compute different vectors" in capsys.readouterr().err
    assert list((folder / "onnx").iterdir()) == []


def test_exporting_a_folder_without_a_model_is_reported_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export_onnx.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in ("torch", "transformers") else find(name, package)
sys.path.insert(0, %r)
"""
SEARCH = """
import argparse
from local_dense_retriever import build_index
from local_dense_retriever.loading import add_index_arguments, load_retriever
flags = ["--corpus_path", sys.argv[1], "--index_path", sys.argv[1] + ".index",
         "--retriever_name", "minilm", "--retriever_model", sys.argv[2]]
assert build_index.main(flags) == 0
parser = argparse.ArgumentParser()
add_index_arguments(parser)
retriever = load_retriever(parser.parse_args(flags), print)
print(retriever.describe()["backend"], retriever.search(["Where is the Eiffel Tower?"], 1)[0][0].passage.contents)
"""


def test_an_index_is_built_and_searched_without_torch(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", ["Bees make honey.", "The Eiffel Tower stands in Paris."])
    code = WITHOUT_TORCH % str(ROOT) + SEARCH
    command = [sys.executable, "-c", code, str(corpus), str(onnx_minilm_folder())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("faiss IndexFlatIP The Eiffel Tower stands in Paris.\n")


def test_without_torch_and_without_the_onnx_file_one_sentence_says_what_to_install(tmp_path: Path) -> None:
    code = WITHOUT_TORCH % str(ROOT) + (
        "from local_dense_retriever.encoder_choice import load_encoder\n"
        "from local_dense_retriever.errors import InputError\n"
        "try:\n    load_encoder('minilm', sys.argv[1])\nexcept InputError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, minilm_folder()], capture_output=True, text=True, timeout=300)
    assert "needs the package torch: pip install torch transformers, or on a CPU onnxruntime" in done.stdout
