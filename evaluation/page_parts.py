"""Builds the viewer's page from the files in viewer_page/. Static and served pages are the same page."""

import base64
import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent / "viewer_page"
SCRIPTS = ("text", "data", "tokens", "filters", "list", "detail", "compare", "runs", "fork", "keys", "start")


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_STYLE = _read("page.css")
_SCRIPT = '"use strict";\n' + "\n".join(_read(f"{name}.js") for name in SCRIPTS)

# Allows only our own script and style (by hash), and requests only to the server that sent the page, if any.
POLICY = f"default-src 'none'; script-src {_hash(_SCRIPT)}; style-src {_hash(_STYLE)}; connect-src 'self'"
OFFLINE_POLICY = POLICY.replace("connect-src 'self'", "connect-src 'none'")


def page(policy: str, data: str = "") -> str:
    """The whole page; without `data` it asks its server for them."""
    text = _read("page.html")
    for mark, part in (("POLICY", policy), ("STYLE", _STYLE), ("SCRIPT", _SCRIPT), ("DATA", data)):
        text = text.replace(f"{{{{{mark}}}}}", part)
    return text
