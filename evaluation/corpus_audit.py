"""What the retriever's corpus holds for the sets that are evaluated, where `search-r1 audit-corpus` has looked."""

import json
import urllib.request
from collections.abc import Collection

TIMEOUT_S = 10.0


def audit_lines(search: str, sets: Collection[str]) -> list[str]:
    """The sentences about these sets that the retrievers of --search report; none if they know of no audit."""
    kind, _, urls = search.partition(":")
    if kind != "local":
        return []
    lines = (line for url in urls.split(",") for line in _reported(url.strip()).splitlines())
    return sorted({line for line in lines if line.partition(":")[0] in sets})


def _reported(url: str) -> str:
    """What a retriever's /ready says of an audit; empty if it says nothing, or is no retriever of ours."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever http_proxy says
    try:
        with direct.open(f"{url.rstrip('/').removesuffix('/retrieve')}/ready", timeout=TIMEOUT_S) as reply:
            return str(json.load(reply).get("audit", ""))
    except (OSError, ValueError, AttributeError):
        return ""
