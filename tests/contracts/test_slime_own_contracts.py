"""slime's own contract tests for plugins, unchanged, with our hooks in place: for those who have a slime at hand.

SLIME_DIR=/path/to/slime pytest tests/contracts/test_slime_own_contracts.py
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SLIME_DIR = os.environ.get("SLIME_DIR", "")
PATHS = [SLIME_DIR, str(ROOT), os.environ.get("PYTHONPATH", "")]
CONTRACTS = Path(SLIME_DIR) / "tests" / "plugin_contracts"
HOOKS = {
    "test_plugin_generate_contracts.py": {"CUSTOM_GENERATE_FUNCTION_PATH": "generate"},
    "test_plugin_path_loading_contracts.py": {
        "CUSTOM_RM_PATH": "reward_func",
        "DYNAMIC_SAMPLING_FILTER_PATH": "keep_group",
        "ROLLOUT_ALL_SAMPLES_PROCESS_PATH": "process_all_groups",
    },
    "test_plugin_runtime_hook_contracts.py": {
        "CUSTOM_ROLLOUT_LOG_FUNCTION_PATH": "log_rollout",
        "CUSTOM_EVAL_ROLLOUT_LOG_FUNCTION_PATH": "log_eval_rollout",
        "CUSTOM_REWARD_POST_PROCESS_PATH": "reward_post_process",
    },
    "test_plugin_rollout_contracts.py": {},
}
# Packages that slime imports in these files, and that `make install` does not install.
PACKAGES = {"pybase64": "pybase64", "pylatexenc": "pylatexenc", "sglang_router": "sglang-router"}
MISSING = [package for module, package in PACKAGES.items() if not importlib.util.find_spec(module)]


@pytest.mark.skipif(not SLIME_DIR or not CONTRACTS.is_dir(), reason="SLIME_DIR names no slime with plugin contracts")
@pytest.mark.skipif(
    bool(MISSING), reason=f"slime's own tests need more packages: .venv/bin/python -m pip install {' '.join(MISSING)}"
)
@pytest.mark.parametrize("file", HOOKS)
def test_slimes_contract_file_passes_with_our_hooks(file: str) -> None:
    hooks = {f"SLIME_CONTRACT_{name}": f"generate_with_search.{hook}" for name, hook in HOOKS[file].items()}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CONTRACTS / file)]
    command += ["-k", "not callsite_is_stable"]  # looks at slime's own source only, and fails on v0.2.4
    environment = os.environ | hooks | {"SEARCH_BACKEND": "local", "PYTHONPATH": os.pathsep.join(PATHS)}
    done = subprocess.run(command, cwd=SLIME_DIR, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
