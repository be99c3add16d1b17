"""Converts slime's torch_dist checkpoints to Hugging Face folders with slime's own tool."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

TOOL = Path("tools") / "convert_torch_dist_to_hf.py"


def convert(checkpoint: Path, slime_dir: Path, origin: Path, cache: Path) -> Path:
    """The checkpoint as a Hugging Face folder in `cache` (its absolute path), converted unless it already exists.

    `checkpoint` is the folder of slime's --save, or an iter_0000123 in it; `origin` is the Hugging Face folder that
    training started from. Megatron-LM must be importable, as for training: slime's image sets
    PYTHONPATH=/root/Megatron-LM. Raises ValueError for a wrong folder, RuntimeError if the tool fails; its output goes
    to stderr.
    """
    tool = slime_dir / TOOL
    if not tool.is_file():
        raise ValueError(f"{slime_dir} is not slime's repository: it has no {TOOL}.")
    if not (origin / "config.json").is_file():
        raise ValueError(f"--model must be the Hugging Face folder that training started from; {origin} is not one.")
    iteration = _iteration(checkpoint)
    written = (iteration / "common.pt").stat().st_mtime_ns
    folder = cache.resolve() / f"{checkpoint.resolve().name}-{iteration.name}-{written:x}"
    if (folder / "config.json").is_file():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f"{folder.name}.unfinished-{os.getpid()}")  # the tool needs a new path
    command = [sys.executable, str(tool), "--input-dir", str(iteration), "--output-dir", str(unfinished)]
    command += ["--origin-hf-dir", str(origin)]
    rows = json.loads((origin / "config.json").read_text(encoding="utf-8")).get("vocab_size")
    if rows:  # Megatron pads the embeddings beyond it
        command += ["--vocab-size", str(rows)]
    path = os.pathsep.join(filter(None, [str(slime_dir), os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(command, stdout=sys.stderr.fileno(), env={**os.environ, "PYTHONPATH": path})
        if done.returncode != 0:
            raise RuntimeError(
                f"slime's {TOOL.name} failed; see its output above. Like training, it needs Megatron-LM in PYTHONPATH."
            )
        unfinished.rename(folder)  # atomic: an interrupted conversion never looks like a model
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _iteration(checkpoint: Path) -> Path:
    """The folder of one iteration: the checkpoint itself, or the latest that it names."""
    if (checkpoint / "common.pt").is_file():
        return checkpoint
    latest = checkpoint / "latest_checkpointed_iteration.txt"
    if latest.is_file():
        name = latest.read_text(encoding="utf-8").strip()
        folder = checkpoint / (f"iter_{int(name):07d}" if name.isdigit() else name)
        if (folder / "common.pt").is_file():
            return folder
    raise ValueError(f"{checkpoint} is not a torch_dist checkpoint: neither it nor its latest iteration has common.pt.")
