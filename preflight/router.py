"""Check of the token router, in the modes that need one."""

import shlex

from preflight.findings import Finding, fine, mistake, skipped
from preflight.probe import TIMEOUT_S, call
from preflight.setup import ROOT, Setup
from search_rollout.config import ConfigError
from search_rollout.engine.client import EngineClient
from search_rollout.engine.sglang_reply import EngineError
from search_rollout.engine.tracking import check_router


def token_router(setup: Setup) -> Finding:
    mode, url = setup.config.token_tracking_mode, setup["TOKEN_ROUTER_URL"].rstrip("/")
    if mode == "manual":
        return skipped("TOKEN_TRACKING_MODE=manual needs no router")
    client = EngineClient(url, timeout_s=TIMEOUT_S, retries=0)
    folder, tokenizer = shlex.quote(str(ROOT)), shlex.quote(setup["HF_CHECKPOINT"])
    command = f"    cd {folder} && {setup['PYTHON']} -m token_router --tokenizer {tokenizer}"
    remedy = f"correct TOKEN_ROUTER_URL, or start it (run_qwen2.5_3B_with_retrieval.sh does):\n{command}"
    with mistake(remedy, EngineError, found=f"{url} does not answer: "):
        with mistake(remedy, ConfigError, found=f"{url} is not a token router: "):
            call(client, lambda: check_router(client, mode))
    return fine(f"{url} keeps the ids that {mode} needs")


CHECKS = (token_router,)
