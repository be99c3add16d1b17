"""Checks of the software: what $PYTHON finds with the PYTHONPATH of the job, without importing any of it."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from preflight.findings import Blocked, Check, Finding, doubtful, fine, one_line, skipped, wrong
from preflight.setup import ROOT, Setup

OURS = ("aiohttp", "chardet")
SLIMES = ("torch", "transformers", "ray", "sglang", "megatron")
LOGGERS = {"USE_WANDB": "wandb", "USE_TENSORBOARD": "tensorboard"}
PYTHON_TIMEOUT_S = 30.0
TESTED_SLIME = ("0.2.0", "0.2.3", "0.3.1")  # what the setup.py of v0.2.0, v0.2.4, v0.3.1 and HEAD say of themselves
FEATURES = {  # what slime/utils/types.py holds -> what that means; docs/SLIME_VERSIONS.md has the whole table
    "remove_sample": "samples can be removed",
    "session_id": "sessions keep to an engine",
    "append_response_tokens": "top-p replay",
}
LOOK = """
import importlib.metadata, importlib.util, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        continue
    origin = spec.origin or next(iter(spec.submodule_search_locations or []), "")
    names = {"megatron": "megatron-core"}
    try:
        version = importlib.metadata.version(names.get(name, name))
    except importlib.metadata.PackageNotFoundError:
        version = ""
    found[name] = [version, origin]
print(json.dumps(found))
"""


def find_packages(setup: Setup) -> dict[str, list[str]]:
    """Version and file of each package that there is. Raises LookupError, saying why nothing is known."""
    python = setup["PYTHON"]
    path = ":".join(
        filter(None, [setup["MEGATRON_DIR"], str(ROOT), setup["SLIME_DIR"], setup.environment.get("PYTHONPATH")])
    )
    command = [python, "-c", LOOK, *OURS, *SLIMES, *LOGGERS.values(), "slime"]
    try:
        done = subprocess.run(
            command,
            env={**setup.environment, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=PYTHON_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
        return json.loads(done.stdout)
    except FileNotFoundError as error:
        raise LookupError(f"there is no Python {python!r}") from error
    except subprocess.TimeoutExpired as error:
        raise LookupError(f"{python} takes more than {PYTHON_TIMEOUT_S:.0f} s to look") from error
    except ValueError as error:
        raise LookupError(f"{python} fails: {one_line(done.stderr)}") from error


def version_of(setup: Setup, package: str) -> str:
    """The version that is installed; empty if it is not known."""
    try:
        return setup.once(find_packages).get(package, [""])[0]
    except LookupError:
        return ""


def python(setup: Setup) -> Finding:
    try:
        found = setup.once(find_packages)
    except LookupError as error:
        return wrong(str(error), "set PYTHON to that of slime")
    needed = [*OURS, *(package for switch, package in LOGGERS.items() if setup.is_on(switch))]
    if missing := [name for name in needed if name not in found]:
        command = f"    {setup['PYTHON']} -m pip install {' '.join(missing)}"
        return wrong(f"{setup['PYTHON']} has no package {', '.join(missing)}", f"install it:\n{command}")
    return fine(f"{setup['PYTHON']} has {_versions(found, needed)}")


def trainers(setup: Setup) -> Finding:
    found = _found(setup)
    missing = [name for name in SLIMES if name not in found]
    if "megatron" in missing and missing == ["megatron"]:
        return wrong(f"there is no Megatron-LM in {setup['MEGATRON_DIR']}", "set MEGATRON_DIR to its folder")
    if missing:
        return wrong(
            f"{setup['PYTHON']} has no package {', '.join(missing)}",
            "use slime's image, or set PYTHON to the Python that slime is installed for",
        )
    return fine(_versions(found, SLIMES))


def slime(setup: Setup) -> Finding:
    folder = Path(setup["SLIME_DIR"])
    if not (folder / "train.py").is_file():
        return wrong(
            f"there is no slime in {folder}: it has no train.py", "set SLIME_DIR to the folder of its repository"
        )
    if "slime" not in _found(setup):
        return wrong(
            f"{setup['PYTHON']} cannot import slime", f"install it:\n    {setup['PYTHON']} -m pip install -e {folder}"
        )
    version = _version_in(folder)
    known = "the contract tests were run against it" if version in TESTED_SLIME else "not one of docs/SLIME_VERSIONS.md"
    types = folder / "slime" / "utils" / "types.py"
    text = types.read_text(encoding="utf-8") if types.is_file() else ""
    features = [meaning for name, meaning in FEATURES.items() if name in text]
    return fine(f"{folder}, version {version or 'unknown'}, {known}" + (f"; {', '.join(features)}" if features else ""))


def _version_in(folder: Path) -> str:
    setup_file = folder / "setup.py"
    match = re.search(r'version="([^"]+)"', setup_file.read_text(encoding="utf-8")) if setup_file.is_file() else None
    return match[1] if match else ""


def ray_command(setup: Setup) -> Finding:
    path = shutil.which("ray", path=setup.environment.get("PATH"))
    if path is None:
        return wrong("there is no command ray", "use slime's image, or pip install 'ray[default]'")
    return fine(path)


def tracking_key(setup: Setup) -> Finding:
    if not setup.is_on("USE_WANDB"):
        return skipped("USE_WANDB is 0")
    home = Path(setup.environment.get("HOME") or "/root")
    has_netrc = (home / ".netrc").is_file() and "wandb" in (home / ".netrc").read_text(errors="replace")
    if setup.environment.get("WANDB_API_KEY") or setup.environment.get("WANDB_MODE") == "offline" or has_netrc:
        return fine("a key is there")
    return doubtful("USE_WANDB=1, and no key is found", "run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline")


def _found(setup: Setup) -> dict[str, list[str]]:
    try:
        return setup.once(find_packages)
    except LookupError as error:
        raise Blocked(str(error)) from error


def _versions(found: dict[str, Any], names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(f"{name} {found[name][0] or '(version unknown)'}" for name in names)


CHECKS = (
    Check("Python", python),
    Check("trainers", trainers),
    Check("slime", slime),
    Check("ray", ray_command),
    Check("W&B key", tracking_key),
)
