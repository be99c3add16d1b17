"""Import paths as in a slime worker, and an environment without settings of the developer's own."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SLIME = Path(os.environ.get("SLIME_DIR") or ROOT / "slime_standin")
for folder in (ROOT, SLIME, ROOT / "tests"):
    sys.path.insert(0, str(folder))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A job in the background ignores Ctrl-C, and so would the programs that tests start and then interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import slime.utils  # noqa: E402  (this and the next need the path above)

from search_rollout.config import ENVIRONMENT  # noqa: E402

if not os.environ.get("SLIME_DIR"):  # what tests need of slime beyond the stand-in
    slime.__path__.append(str(ROOT / "tests" / "slime_parts"))
    slime.utils.__path__.append(str(ROOT / "tests" / "slime_parts" / "utils"))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable of ours from outside, and no settings cached by another test."""
    for name in list(os.environ):
        if name in ENVIRONMENT.values() or name.startswith("SEARCH_R1_"):
            monkeypatch.delenv(name)
    if "generate_with_search" in sys.modules:
        monkeypatch.setattr(sys.modules["generate_with_search"], "_settings", None)
    yield
