"""Check of the token router, in the modes that need one."""

import asyncio
import shlex

from preflight.findings import Check, Finding, fine, skipped, wrong
from preflight.setup import ROOT, Setup
from search_rollout.config import ConfigError
from search_rollout.engine.client import EngineClient
from search_rollout.engine.sglang_reply import EngineError
from search_rollout.engine.tracking import check_router

TIMEOUT_S = 5.0


def router(setup: Setup) -> Finding:
    mode, url = setup.config.token_tracking_mode, setup["TOKEN_ROUTER_URL"].rstrip("/")
    if mode == "manual":
        return skipped("TOKEN_TRACKING_MODE=manual needs none")

    async def ask() -> None:
        client = EngineClient(url, timeout_s=TIMEOUT_S, retries=0)
        try:
            await check_router(client, mode)
        finally:
            await client.close()

    folder, tokenizer = shlex.quote(str(ROOT)), shlex.quote(setup["HF_CHECKPOINT"])
    command = f"    cd {folder} && {setup['PYTHON']} -m token_router --tokenizer {tokenizer}"
    remedy = f"correct TOKEN_ROUTER_URL, or start it (run_qwen2.5_3B_with_retrieval.sh does):\n{command}"
    try:
        asyncio.run(ask())
    except EngineError as error:
        return wrong(f"{url} does not answer: {error}", remedy)
    except ConfigError as error:
        return wrong(f"{url} is no token router: {error}", remedy)
    return fine(f"{url} keeps the ids that {mode} asks for")


CHECKS = (Check("token router", router),)
