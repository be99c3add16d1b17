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

# Allows only our own script and style (by hash), and requests only to the server that sent the page.
POLICY = f"default-src 'none'; script-src {_hash(_SCRIPT)}; style-src {_hash(_STYLE)}; connect-src 'self'"


def page_around_data() -> tuple[str, str]:
    """The parts of a static page before and after its data."""
    page = _read("page.html")
    policy = POLICY.replace("connect-src 'self'", "connect-src 'none'")
    for mark, text in (("POLICY", policy), ("STYLE", _STYLE), ("SCRIPT", _SCRIPT)):
        page = page.replace(f"{{{{{mark}}}}}", text)
    head, _, tail = page.partition("{{DATA}}")
    return head, tail


def served_page() -> str:
    """The page that loads its data from the server, which sends the policy as a header."""
    page = _read("page.html")
    for mark, text in (("POLICY", POLICY), ("STYLE", _STYLE), ("DATA", ""), ("SCRIPT", _SCRIPT)):
        page = page.replace(f"{{{{{mark}}}}}", text)
    return page
