"""Checks of the software that $PYTHON finds on the job's PYTHONPATH, without importing it."""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from preflight.findings import Blocked, Finding, Mistake, doubtful, fine, one_line, pip_install, skipped, wrong
from preflight.probe import run
from preflight.setup import ROOT, Setup

OURS = ("aiohttp", "chardet")
SLIME_PACKAGES = ("torch", "transformers", "ray", "sglang", "megatron")
LOGGERS = {"USE_WANDB": "wandb", "USE_TENSORBOARD": "tensorboard"}
PYTHON_TIMEOUT_S = 30.0
SET_PYTHON = "set PYTHON to slime's"
TESTED_SLIME = ("0.2.0", "0.2.3", "0.3.1")  # the versions in the setup.py of v0.2.0, v0.2.4, v0.3.1 and HEAD
FEATURES = {  # a name in slime/utils/types.py -> what it means; docs/SLIME_VERSIONS.md has the whole table
    "remove_sample": "samples can be removed",
    "session_id": "a session stays on one engine",
    "append_response_tokens": "top-p replay",
}
LOOK = """
import importlib.metadata, importlib.util, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        if importlib.util.find_spec(name):
            found[name] = ""
            found[name] = importlib.metadata.version({"megatron": "megatron-core"}.get(name, name))
    except (ImportError, ValueError):  # includes importlib.metadata's PackageNotFoundError
        pass
print(json.dumps(found))
"""


def find_packages(setup: Setup) -> dict[str, str]:
    """The version of each package that PYTHON finds. Raises Mistake."""
    python = setup["PYTHON"]
    folders = [setup["MEGATRON_DIR"], str(ROOT), setup["SLIME_DIR"], setup.environment.get("PYTHONPATH")]
    command = [python, "-c", LOOK, *OURS, *SLIME_PACKAGES, *LOGGERS.values(), "slime"]
    path = ":".join(filter(None, folders))
    done = run(command, {**setup.environment, "PYTHONPATH": path}, PYTHON_TIMEOUT_S, SET_PYTHON)
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        raise Mistake(f"{python} fails: {one_line(done.stderr)}", SET_PYTHON) from error


def version_of(setup: Setup, package: str) -> str:
    """The installed version; empty if unknown."""
    try:
        return setup.need(find_packages).get(package, "")
    except Blocked:
        return ""


def python(setup: Setup) -> Finding:
    found = setup.once(find_packages)
    needed = [*OURS, *(package for switch, package in LOGGERS.items() if setup.is_on(switch))]
    if missing := [name for name in needed if name not in found]:
        found_text = f"{setup['PYTHON']} has no package {', '.join(missing)}"
        return wrong(found_text, pip_install(*missing, python=setup["PYTHON"]))
    return fine(f"{setup['PYTHON']} has {_versions(found, needed)}")


def trainers(setup: Setup) -> Finding:
    found = setup.need(find_packages)
    missing = [name for name in SLIME_PACKAGES if name not in found]
    if missing == ["megatron"]:
        return wrong(f"there is no Megatron-LM in {setup['MEGATRON_DIR']}", "set MEGATRON_DIR to its folder")
    if missing:
        problem = f"{setup['PYTHON']} has no package {', '.join(missing)}"
        return wrong(problem, "use slime's image, or set PYTHON to the Python that slime is installed for")
    return fine(_versions(found, SLIME_PACKAGES))


def slime(setup: Setup) -> Finding:
    folder = Path(setup["SLIME_DIR"])
    if not (folder / "train.py").is_file():
        return wrong(f"there is no slime in {folder}: it has no train.py", "set SLIME_DIR to slime's repository")
    if "slime" not in setup.need(find_packages):
        problem = f"{setup['PYTHON']} cannot import slime"
        return wrong(problem, pip_install("--editable", str(folder), python=setup["PYTHON"]))
    match = re.search(r'version="([^"]+)"', _text(folder / "setup.py"))
    version, types = match[1] if match else "unknown", _text(folder / "slime" / "utils" / "types.py")
    known = "covered by the contract tests" if version in TESTED_SLIME else "not listed in docs/SLIME_VERSIONS.md"
    features = [meaning for name, meaning in FEATURES.items() if name in types]
    return fine("; ".join([f"{folder}, version {version}, {known}", *features]))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def ray(setup: Setup) -> Finding:
    path = shutil.which("ray", path=setup.environment.get("PATH"))
    if path is None:
        return wrong("there is no command ray", "use slime's image, or pip install 'ray[default]'")
    return fine(path)


def wandb_key(setup: Setup) -> Finding:
    if not setup.is_on("USE_WANDB"):
        return skipped("USE_WANDB is 0")
    home = Path(setup.environment.get("HOME") or "/root")
    has_netrc = (home / ".netrc").is_file() and "wandb" in (home / ".netrc").read_text(errors="replace")
    if setup.environment.get("WANDB_API_KEY") or setup.environment.get("WANDB_MODE") == "offline" or has_netrc:
        return fine("found")
    return doubtful("USE_WANDB=1, but no key is found", "run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline")


def _versions(found: dict[str, str], names: Iterable[str]) -> str:
    return ", ".join(f"{name} {found[name] or '(version unknown)'}" for name in names)


CHECKS = (python, trainers, slime, ray, wandb_key)
