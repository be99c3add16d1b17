"""Checks of this machine: GPUs, ports, Ray, disk, shared memory."""

import csv
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from preflight.checkpoint_files import BadFile, count_parameters, weight_files
from preflight.findings import Blocked, Check, Finding, doubtful, fine, one_line, skipped, wrong
from preflight.packages import version_of
from preflight.probe import get, is_taken
from preflight.setup import Setup

SMI_TIMEOUT_S = 15.0
QUERY = "--query-gpu=index,uuid,name,memory.total,memory.used"
USED_MIB = 1024  # of a GPU that counts as free: the driver itself takes some hundred
BYTES_A_PARAMETER = 14  # of a checkpoint: weights in bf16, and Adam's float32 weight and two moments
SHM_BYTES = 8 * 2**30  # Ray's objects and NCCL live in /dev/shm


class Gpu(NamedTuple):
    number: str
    uuid: str
    name: str
    total_mib: int
    used_mib: int


def find_gpus(setup: Setup) -> list[Gpu]:
    """All GPUs of this machine. Raises LookupError, saying why there are none."""
    try:
        done = _nvidia_smi(setup, QUERY, "--format=csv,noheader,nounits")
    except FileNotFoundError as error:
        raise LookupError("there is no nvidia-smi") from error
    except subprocess.TimeoutExpired as error:
        raise LookupError(f"nvidia-smi does not answer within {SMI_TIMEOUT_S:.0f} s") from error
    rows = [row for row in csv.reader(done.stdout.splitlines(), skipinitialspace=True) if len(row) == 5]
    if done.returncode or not rows:
        raise LookupError(f"nvidia-smi finds no GPU: {one_line(done.stderr or done.stdout, 100)}")
    return [Gpu(number, uuid, name, _mib(total), _mib(used)) for number, uuid, name, total, used in rows]


def _nvidia_smi(setup: Setup, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["nvidia-smi", *arguments],
        env=setup.environment,
        capture_output=True,
        text=True,
        timeout=SMI_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
    )


def gpus(setup: Setup) -> Finding:
    if setup["RAY_ADDRESS"]:
        return skipped("RAY_ADDRESS is set: the GPUs are the cluster's")
    wanted = setup.number("NUM_GPUS")
    try:
        found = setup.once(find_gpus)
    except LookupError as error:
        return wrong(str(error), "run this where the GPUs are, or set RAY_ADDRESS to a cluster that has them")
    visible = setup.environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and (missing := [name for name in _names(visible) if not _matching(found, name)]):
        return wrong(
            f"CUDA_VISIBLE_DEVICES={visible}: there is no GPU {', '.join(missing)}, but {len(found)} from 0 on",
            "correct CUDA_VISIBLE_DEVICES",
        )
    usable = len(_training_gpus(setup, found, all_visible=True))
    if wanted > usable:
        return wrong(f"NUM_GPUS={wanted}, and {usable} are there", "set NUM_GPUS to what there is, or unset it")
    if not wanted:
        return wrong("NUM_GPUS is 0: training needs one", "set CUDA_VISIBLE_DEVICES or NUM_GPUS")
    return fine(f"{wanted} of {usable}: {found[0].name}, {found[0].total_mib / 1024:.0f} GiB each")


def sharing(setup: Setup) -> Finding:
    theirs = _names(setup["RETRIEVER_GPUS"])
    if not theirs:
        return skipped("RETRIEVER_GPUS is empty: the retriever uses none")
    training, found = _training(setup)
    retrieving = [gpu for name in theirs for gpu in _matching(found, name)]
    if shared := [gpu.number for gpu in training if gpu in retrieving]:
        free = [gpu.number for gpu in found if gpu.number not in theirs]
        return wrong(
            f"GPU {', '.join(shared)} is for the retriever (RETRIEVER_GPUS={setup['RETRIEVER_GPUS']}) and for training",
            f"share them out, for example CUDA_VISIBLE_DEVICES={','.join(free) or '…'}",
        )
    return fine(f"{', '.join(theirs)} for the retriever, {', '.join(gpu.number for gpu in training)} for training")


def occupied(setup: Setup) -> Finding:
    training, _ = _training(setup)
    busy = [gpu for gpu in training if gpu.used_mib > USED_MIB]
    if not busy:
        return fine("nobody else uses the GPUs of training")
    who = _processes(setup, {gpu.uuid for gpu in busy})
    said = ", ".join(f"GPU {gpu.number}: {gpu.used_mib:,} of {gpu.total_mib:,} MiB used" for gpu in busy)
    return doubtful(f"{said}{f' by {who}' if who else ''}", "stop what uses them, or give CUDA_VISIBLE_DEVICES others")


def _processes(setup: Setup, uuids: set[str]) -> str:
    """Who has memory of these GPUs; empty where the driver does not tell, as in containers."""
    done = _nvidia_smi(setup, "--query-compute-apps=gpu_uuid,pid,process_name", "--format=csv,noheader")
    rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    return ", ".join(f"process {row[1]} ({row[2]})" for row in rows if len(row) == 3 and row[0] in uuids)


def _training(setup: Setup) -> tuple[list[Gpu], list[Gpu]]:
    """The GPUs of training, and all; raises Blocked if they cannot be told."""
    if setup["RAY_ADDRESS"]:
        raise Blocked("RAY_ADDRESS is set: the GPUs are the cluster's")
    try:
        found = setup.once(find_gpus)
    except LookupError as error:
        raise Blocked(str(error)) from error
    return _training_gpus(setup, found), found


def _training_gpus(setup: Setup, found: list[Gpu], *, all_visible: bool = False) -> list[Gpu]:
    """Those that Ray will give to the job: the first NUM_GPUS that are visible."""
    names = setup.environment.get("CUDA_VISIBLE_DEVICES")
    visible = found if names is None else [gpu for name in _names(names) for gpu in _matching(found, name)]
    return visible if all_visible else visible[: setup.number("NUM_GPUS")]


def _matching(found: list[Gpu], name: str) -> list[Gpu]:
    """The GPU that CUDA_VISIBLE_DEVICES means by a number or the beginning of a UUID."""
    return [gpu for gpu in found if gpu.number == name or (not name.isdecimal() and gpu.uuid.startswith(name))]


def _names(visible: str) -> list[str]:
    return [name.strip() for name in visible.split(",") if name.strip()]


def _mib(text: str) -> int:
    return int(text) if text.isdecimal() else 0  # "[N/A]" on some machines


# --- Ray ---


def ports(setup: Setup) -> Finding:
    if setup["RAY_ADDRESS"]:
        return skipped("RAY_ADDRESS is set: no Ray is started")
    chosen = {name: setup.number(name) for name in ("RAY_PORT", "RAY_DASHBOARD_PORT")}
    if len(set(chosen.values())) == 1:
        return wrong(f"RAY_PORT and RAY_DASHBOARD_PORT are both {setup['RAY_PORT']}", "give them different numbers")
    if taken := [f"{name}={port}" for name, port in chosen.items() if is_taken(port)]:
        return wrong(
            f"in use already: {', '.join(taken)}",
            "if a Ray runs there that you want to join, set RAY_ADDRESS=http://HOST:8265; else give other numbers",
        )
    return fine(", ".join(f"{name}={port}" for name, port in chosen.items()) + " are free")


def cluster(setup: Setup) -> Finding:
    address = setup["RAY_ADDRESS"].rstrip("/")
    if not address:
        return skipped("RAY_ADDRESS is not set: a Ray is started")
    if not address.startswith(("http://", "https://")):
        return wrong(f"RAY_ADDRESS={address} is not the address of a dashboard", "set it to http://HEAD:8265")
    answer = get(f"{address}/api/version")
    if answer.trouble:
        return wrong(f"{address}: {answer.trouble}", "correct RAY_ADDRESS, or start the cluster")
    if answer.status == 401:
        return fine(f"{address}: a Ray that asks for its token; ~/.ray/auth_token is used")
    version = answer.body.get("ray_version") if isinstance(answer.body, dict) else None
    if answer.status != 200 or not version:
        return wrong(f"{address} is no Ray: it answers {answer.status}", "set RAY_ADDRESS to http://HEAD:8265")
    ours = version_of(setup, "ray")
    if ours and ours != version:
        return doubtful(f"{address}: Ray {version}, and here it is {ours}", "use the same version in both places")
    return fine(f"{address}: Ray {version}")


# --- memory ---


def disk(setup: Setup) -> Finding:
    if not setup["SAVE_DIR"]:
        return skipped("SAVE_DIR is not set")
    try:
        parameters = count_parameters(weight_files(Path(setup["HF_CHECKPOINT"])))
    except BadFile as error:
        raise Blocked("the size of the model is not known") from error
    path = Path(setup["SAVE_DIR"]).absolute()
    free = shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists())).free
    one = parameters * BYTES_A_PARAMETER
    said = (
        f"{free / 1e9:,.0f} GB free; a checkpoint takes about {one / 1e9:,.1f} GB ({BYTES_A_PARAMETER} bytes for each "
        f"of {parameters / 1e9:.2f} billion parameters, with the optimizer)"
    )
    count = setup.number("NUM_ROLLOUT") // max(setup.number("SAVE_INTERVAL"), 1)
    if free < one:
        return wrong(said, "set SAVE_DIR to a folder with more room")
    if free < one * count:
        return doubtful(
            f"{said}, and {count} are to be saved", "raise SAVE_INTERVAL, or remove old ones while it trains"
        )
    return fine(said)


def shared_memory(setup: Setup) -> Finding:
    if not Path("/dev/shm").is_dir():
        return skipped("there is no /dev/shm")
    size = shutil.disk_usage("/dev/shm").total
    if size < SHM_BYTES:
        return doubtful(
            f"/dev/shm has {size / 2**30:.1f} GiB, and Ray and NCCL keep their data there",
            "start the container with --shm-size=16g or --ipc=host",
        )
    return fine(f"/dev/shm has {size / 2**30:.0f} GiB")


CHECKS = (
    Check("GPUs", gpus),
    Check("GPU sharing", sharing),
    Check("GPU memory", occupied),
    Check("ports", ports),
    Check("Ray cluster", cluster),
    Check("disk", disk),
    Check("shared memory", shared_memory),
)
