"""The project around the code: its documentation site and its installation."""

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def pages_of(nav: Any) -> Iterator[str]:
    """The paths in a navigation of titles, pages and sections."""
    for entry in nav:
        for target in entry.values():
            if isinstance(target, str):
                yield target
            else:
                yield from pages_of(target)


def test_the_documentation_site_lists_every_page_once() -> None:
    nav = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]
    pages.append(ROOT / "local_dense_retriever" / "README.md")
    assert sorted(pages_of(nav)) == sorted(str(page.relative_to(ROOT)) for page in pages)


def test_building_a_wheel_is_refused_with_the_way_to_install() -> None:
    command = [sys.executable, "setup.py", "--quiet", "bdist_wheel"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith("pip install --editable .")
    assert not (ROOT / "build" / "lib").exists()
