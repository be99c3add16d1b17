"""A machine on which everything is right, for preflight to look at: small files, real servers, a faked nvidia-smi."""

import asyncio
import contextlib
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import uvicorn
from launch_helpers import free_ports
from retriever_fakes import ColourEncoder, write_corpus, write_flat_index
from router_fakes import hermes_tokenizer

from local_dense_retriever.app import create_app
from local_dense_retriever.batcher import Limits
from local_dense_retriever.corpus import Corpus
from local_dense_retriever.faiss_index import FaissIndex
from local_dense_retriever.retriever import Retriever
from local_dense_retriever.searcher import DenseSearcher
from local_dense_retriever.service import Service
from oai_format_data_preprocess import parquet_schema
from preflight.__main__ import GROUPS
from preflight.groups import Row, run_groups
from preflight.setup import Setup
from search_rollout.protocols.prompts import PromptMode, prompt_row

TOKENIZER = hermes_tokenizer()
TEXTS = ('"Red"\nred', '"Green"\ngreen', '"Blue"\nblue', '"Two"\nred red blue')
SMI = """#!/bin/sh
case "$*" in
  *--list-gpus*) echo 'GPU 0: H100 (UUID: GPU-a)'; echo 'GPU 1: H100 (UUID: GPU-b)' ;;
  *--query-gpu*) echo '0, GPU-a, H100, 81559, 4'; echo "1, GPU-b, H100, 81559, ${USED_MIB:-4}" ;;
  *--query-compute-apps*) echo 'GPU-b, 4242, python' ;;
esac
"""
CONFIG = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "num_hidden_layers": 36,
    "hidden_size": 2048,
    "vocab_size": 512,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
}


class Machine:
    """Its files, and the environment that names them."""

    def __init__(self, folder: Path, retriever_url: str) -> None:
        self.folder = folder
        self.open = contextlib.ExitStack()
        self.train_args: list[str] = []
        folder.mkdir(exist_ok=True)
        self.model = folder / "the model"
        self.reference = folder / "reference"
        self.data = folder / "train.parquet"
        self.slime = folder / "slime"
        self.programs = folder / "programs"
        self.packages = folder / "packages"
        self._write_model()
        self._write_software()
        self.write_data("generate")
        ray_port, dashboard_port = free_ports(2)
        self.environment = {
            "PATH": f"{self.programs}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "PYTHON": sys.executable,
            "PYTHONPATH": str(self.packages),
            "SLIME_DIR": str(self.slime),
            "MEGATRON_DIR": str(folder / "megatron"),
            "HF_CHECKPOINT": str(self.model),
            "REF_LOAD": str(self.reference),
            "SAVE_DIR": str(folder / "saved"),
            "PROMPT_DATA": str(self.data),
            "ROLLOUT_BATCH_SIZE": "4",
            "RAY_PORT": str(ray_port),
            "RAY_DASHBOARD_PORT": str(dashboard_port),
            "SEARCH_BACKEND": "local",
            "RETRIEVAL_SERVER_URL": retriever_url,
            "PREFLIGHT": "1",
        }

    def _write_model(self) -> None:
        TOKENIZER.save_pretrained(self.model)
        self.write_json("config.json", CONFIG)
        write_safetensors(self.model / "model.safetensors")
        (self.reference / "release").mkdir(parents=True)
        (self.reference / "release" / "common.pt").touch()
        (self.reference / "latest_checkpointed_iteration.txt").write_text("release")

    def _write_software(self) -> None:
        (self.slime / "scripts/models").mkdir(parents=True)
        (self.slime / "slime").mkdir()
        (self.slime / "slime" / "__init__.py").touch()
        (self.slime / "train.py").touch()
        (self.slime / "setup.py").write_text('setup(name="slime", version="0.3.1")')
        self.model_args = self.slime / "scripts/models/qwen2.5-3B.sh"
        self.model_args.write_text(
            "MODEL_ARGS=(--swiglu --num-layers 36 --hidden-size 2048 --vocab-size 512 --rotary-base 1000000)\n"
        )
        for name in ("packages/ray", "packages/sglang", "megatron/megatron"):
            (self.folder / name).mkdir(parents=True)
            (self.folder / name / "__init__.py").touch()
        self.programs.mkdir()
        self.program("nvidia-smi", SMI)
        self.program("ray", "#!/bin/sh\n")

    def program(self, name: str, text: str) -> None:
        """Puts a program on the PATH."""
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def write_json(self, name: str, value: object) -> None:
        """A file of the model."""
        (self.model / name).write_text(json.dumps(value))

    def write_template(self, template: str | None) -> None:
        """Another chat template for the model; None: no template."""
        path = self.model / "chat_template.jinja"
        assert path.is_file()
        if template is None:
            path.unlink()
        else:
            path.write_text(template)

    def write_data(self, mode: PromptMode, rows: list[dict[str, Any]] | None = None) -> None:
        """PROMPT_DATA: some questions, or these rows."""
        rows = data_rows(mode) if rows is None else rows
        pq.write_table(pa.Table.from_pylist(rows, parquet_schema(mode)), self.data)

    def write_yaml(self, text: str) -> None:
        path = self.folder / "settings.yaml"
        path.write_text(text)
        self.environment["CUSTOM_CONFIG_PATH"] = str(path)

    def look(self, engine: str | None = None) -> list[Row]:
        """The rows of all groups."""
        groups = [name for name in GROUPS if name != "engine" or engine]
        return list(run_groups(Setup(self.environment, engine, self.train_args), groups))


def data_rows(mode: PromptMode) -> list[dict[str, Any]]:
    capitals = {"Kenya": "Nairobi", "Ghana": "Accra", "Peru": "Lima", "Cuba": "Havana", "Mali": "Bamako"}
    return [
        prompt_row(f"What is the capital of {country}?", [capital], "nq", mode=mode, extra={"index": number})
        for number, (country, capital) in enumerate(capitals.items())
    ]


def marked(rows: list[Row], mark: str) -> dict[str, str]:
    """What the rows with a mark say, by group and name."""
    return {
        f"{row.group}: {row.name}": f"{row.finding.found} → {row.finding.remedy}"
        for row in rows
        if row.finding.mark == mark
    }


def write_safetensors(path: Path, *, numbers: int = 6, missing_bytes: int = 0) -> None:
    """A file of one tensor, or the beginning of such a file."""
    header = json.dumps({"w": {"dtype": "BF16", "shape": [numbers], "data_offsets": [0, 2 * numbers]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(2 * numbers - missing_bytes))


@contextlib.contextmanager
def retriever_server(
    folder: Path,
    texts: Sequence[str] = TEXTS,
    *,
    indexed: Sequence[str] = (),
    loads: bool = True,
    key: str | None = None,
) -> Iterator[str]:
    """The real retriever and its real app, with an encoder of colours: its URL. `indexed`: the index is of these."""
    folder.mkdir(exist_ok=True)
    encoder, service = ColourEncoder(), Service(Limits())
    index = write_flat_index(folder / "c.index", encoder.encode_passages(indexed or texts))
    retriever = Retriever(DenseSearcher(encoder, FaissIndex(index)), Corpus(write_corpus(folder / "c.jsonl", texts)))
    server = uvicorn.Server(uvicorn.Config(create_app(service, api_key=key), log_level="error", lifespan="off"))
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:

        async def serve() -> None:
            if loads:
                await service.load(lambda report: retriever)
            await server.serve(sockets=[listener])
            service.close()

        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(listener.accept()[0])

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=5)
    for connection in taken:
        connection.close()
