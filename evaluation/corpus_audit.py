"""Reports how well the retriever's corpus covers the evaluated sets, if `search-r1 audit-corpus` has checked it."""

import json
from collections.abc import Collection

from evaluation.server_process import DIRECT

TIMEOUT_S = 10.0


def audit_lines(search: str, sets: Collection[str]) -> list[str]:
    """The sentences about these sets that the retrievers of --search report; empty without an audit."""
    kind, _, urls = search.partition(":")
    if kind != "local":
        return []
    lines = (line for url in urls.split(",") for line in _reported(url.strip()).splitlines())
    return sorted({line for line in lines if line.partition(":")[0] in sets})


def _reported(url: str) -> str:
    """The audit in a retriever's /ready; empty if it reports none or is not our retriever."""
    try:
        with DIRECT.open(f"{url.rstrip('/').removesuffix('/retrieve')}/ready", timeout=TIMEOUT_S) as reply:
            return str(json.load(reply).get("audit", ""))
    except (OSError, ValueError, AttributeError):
        return ""
