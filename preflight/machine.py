"""Checks of this machine: GPUs, ports, Ray, disk, shared memory."""

import csv
import shutil
from pathlib import Path
from typing import NamedTuple

from preflight.findings import Blocked, Finding, Mistake, doubtful, fine, one_line, skipped, wrong
from preflight.model import count_weights
from preflight.packages import version_of
from preflight.probe import get, is_taken, nearest_folder, run
from preflight.setup import Setup

SMI_TIMEOUT_S = 15.0
USED_MIB = 1024  # a GPU with less in use counts as free: the driver itself takes a few hundred
BYTES_A_PARAMETER = 14  # in a checkpoint: bf16 weights, Adam's float32 weights and two moments
SHM_BYTES = 8 * 2**30  # Ray's objects and NCCL live in /dev/shm


class Gpu(NamedTuple):
    number: str
    uuid: str
    name: str
    total_mib: int
    used_mib: int


def find_gpus(setup: Setup) -> list[Gpu]:
    """All GPUs of this machine. Raises Mistake, or Blocked if the job runs on a cluster."""
    if setup["RAY_ADDRESS"]:
        raise Blocked("RAY_ADDRESS is set: the cluster has the GPUs")
    remedy = "run this where the GPUs are, or set RAY_ADDRESS to a cluster that has them"
    command = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total,memory.used", "--format=csv,noheader,nounits"]
    done = run(command, setup.environment, SMI_TIMEOUT_S, remedy)
    rows = [row for row in csv.reader(done.stdout.splitlines(), skipinitialspace=True) if len(row) == 5]
    if done.returncode or not rows:
        raise Mistake(f"nvidia-smi finds no GPU: {one_line(done.stderr or done.stdout, 100)}", remedy)
    return [Gpu(number, uuid, name, _mib(total), _mib(used)) for number, uuid, name, total, used in rows]


def gpus(setup: Setup) -> Finding:
    found, wanted = setup.once(find_gpus), setup.number("NUM_GPUS")
    visible = setup.environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and (missing := [name for name in _names(visible) if not _matching(found, name)]):
        said = f"CUDA_VISIBLE_DEVICES={visible}: there is no GPU {', '.join(missing)}; there are {len(found)} from 0 on"
        return wrong(said, "correct CUDA_VISIBLE_DEVICES")
    usable = len(_visible(setup))
    if wanted > usable:
        return wrong(f"NUM_GPUS={wanted}, but there are {usable}", f"set NUM_GPUS to {usable} or less, or unset it")
    if not wanted:
        return wrong("NUM_GPUS is 0, but training needs one", "set CUDA_VISIBLE_DEVICES or NUM_GPUS")
    return fine(f"{wanted} of {usable}: {found[0].name}, {found[0].total_mib / 1024:.0f} GiB each")


def gpu_sharing(setup: Setup) -> Finding:
    theirs = _names(setup["RETRIEVER_GPUS"])
    if not theirs:
        return skipped("RETRIEVER_GPUS is empty: the retriever uses no GPU")
    training, found = _training(setup), setup.need(find_gpus)
    retrieving = [gpu for name in theirs for gpu in _matching(found, name)]
    if shared := [gpu.number for gpu in training if gpu in retrieving]:
        free = [gpu.number for gpu in found if gpu.number not in theirs]
        return wrong(
            f"GPU {', '.join(shared)} serves both RETRIEVER_GPUS={setup['RETRIEVER_GPUS']} and training",
            f"give each its own, for example CUDA_VISIBLE_DEVICES={','.join(free) or '…'}",
        )
    return fine(f"{', '.join(theirs)} for the retriever, {', '.join(gpu.number for gpu in training)} for training")


def gpu_memory(setup: Setup) -> Finding:
    busy = [gpu for gpu in _training(setup) if gpu.used_mib > USED_MIB]
    if not busy:
        return fine("nothing else uses the GPUs of training")
    who = _processes(setup, {gpu.uuid for gpu in busy})
    said = ", ".join(f"GPU {gpu.number}: {gpu.used_mib:,} of {gpu.total_mib:,} MiB used" for gpu in busy)
    return doubtful(f"{said}{f' by {who}' if who else ''}", "stop what uses them, or give CUDA_VISIBLE_DEVICES others")


def _processes(setup: Setup, uuids: set[str]) -> str:
    """The processes that use memory of these GPUs; empty if the driver does not say, as in containers."""
    command = ["nvidia-smi", "--query-compute-apps=gpu_uuid,pid,process_name", "--format=csv,noheader"]
    done = run(command, setup.environment, SMI_TIMEOUT_S)
    rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    return ", ".join(f"process {row[1]} ({row[2]})" for row in rows if len(row) == 3 and row[0] in uuids)


def _visible(setup: Setup) -> list[Gpu]:
    """The GPUs visible to Ray, which gives the first NUM_GPUS of them to the job. Raises Blocked."""
    found, names = setup.need(find_gpus), setup.environment.get("CUDA_VISIBLE_DEVICES")
    return found if names is None else [gpu for name in _names(names) for gpu in _matching(found, name)]


def _training(setup: Setup) -> list[Gpu]:
    return _visible(setup)[: setup.number("NUM_GPUS")]


def _matching(found: list[Gpu], name: str) -> list[Gpu]:
    """The GPU that CUDA_VISIBLE_DEVICES names by number or UUID prefix."""
    return [gpu for gpu in found if gpu.number == name or (not name.isdecimal() and gpu.uuid.startswith(name))]


def _names(visible: str) -> list[str]:
    return [name.strip() for name in visible.split(",") if name.strip()]


def _mib(text: str) -> int:
    return int(text) if text.isdecimal() else 0  # "[N/A]" on some machines


# --- Ray ---


def ports(setup: Setup) -> Finding:
    if setup["RAY_ADDRESS"]:
        return skipped("RAY_ADDRESS is set: the scripts start no Ray")
    chosen = {name: setup.number(name) for name in ("RAY_PORT", "RAY_DASHBOARD_PORT")}
    if len(set(chosen.values())) == 1:
        return wrong(f"RAY_PORT and RAY_DASHBOARD_PORT are both {setup['RAY_PORT']}", "give them different numbers")
    if taken := [f"{name}={port}" for name, port in chosen.items() if is_taken(port)]:
        remedy = "to join a Ray that runs there, set RAY_ADDRESS=http://HOST:8265; else choose other numbers"
        return wrong(f"already in use: {', '.join(taken)}", remedy)
    return fine(", ".join(f"{name}={port}" for name, port in chosen.items()) + " are free")


def ray_cluster(setup: Setup) -> Finding:
    address = setup["RAY_ADDRESS"].rstrip("/")
    if not address:
        return skipped("RAY_ADDRESS is not set: the scripts start a Ray")
    if not address.startswith(("http://", "https://")):
        return wrong(f"RAY_ADDRESS={address} is not the address of a Ray dashboard", "set it to http://HEAD:8265")
    answer = get(address, "/api/version", "correct RAY_ADDRESS, or start the cluster")
    if answer.status == 401:
        return fine(f"{address}: a Ray that asks for its token; ~/.ray/auth_token is used")
    version = answer.body.get("ray_version") if isinstance(answer.body, dict) else None
    if answer.status != 200 or not version:
        return wrong(f"{address} is not Ray: it answers {answer.status}", "set RAY_ADDRESS to http://HEAD:8265")
    ours = version_of(setup, "ray")
    if ours and ours != version:
        return doubtful(f"{address}: Ray {version}, but here it is {ours}", "use the same version in both places")
    return fine(f"{address}: Ray {version}")


# --- memory ---


def disk(setup: Setup) -> Finding:
    if not setup["SAVE_DIR"]:
        return skipped("SAVE_DIR is not set")
    parameters = setup.need(count_weights)
    free = shutil.disk_usage(nearest_folder(Path(setup["SAVE_DIR"]))).free
    one = parameters * BYTES_A_PARAMETER
    said = (
        f"{free / 1e9:,.0f} GB free; a checkpoint with its optimizer takes about {one / 1e9:,.1f} GB "
        f"({parameters / 1e9:.2f} billion parameters, {BYTES_A_PARAMETER} bytes each)"
    )
    count = setup.number("NUM_ROLLOUT") // max(setup.number("SAVE_INTERVAL"), 1)
    if free < one:
        return wrong(said, "set SAVE_DIR to a folder with more space")
    if free < one * count:
        return doubtful(f"{said}; {count} will be saved", "raise SAVE_INTERVAL, or delete old ones during training")
    return fine(said)


def shared_memory(setup: Setup) -> Finding:
    if not Path("/dev/shm").is_dir():
        return skipped("there is no /dev/shm")
    size = shutil.disk_usage("/dev/shm").total
    if size < SHM_BYTES:
        found = f"/dev/shm has {size / 2**30:.1f} GiB; Ray and NCCL keep their data there"
        return doubtful(found, "start the container with --shm-size=16g or --ipc=host")
    return fine(f"/dev/shm has {size / 2**30:.0f} GiB")


CHECKS = (gpus, gpu_sharing, gpu_memory, ports, ray_cluster, disk, shared_memory)
