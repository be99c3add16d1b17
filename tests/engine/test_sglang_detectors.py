"""Tool calls as SGLang reads them: our formats beside its detectors, and any of its detectors as a format of ours.

Every kind of difference stands in docs/MODELS.md, with the reason.
"""

import json
import subprocess
import textwrap
from pathlib import Path

import pytest
from engine_helpers import ROOT, SGLANG

TURNS = 20_000  # of a family
LIMIT_S = 900
IGNORED = "a broken call that SGLang ignores: ours is an error"
REPAIRED = "a broken call that SGLang repairs, or for which it drops others: ours is an error"
VALUES = "the same calls with other values"
MISSED = "a call that SGLang misses"
LOOSER = "a call that ours reads as text"
HANGS = "SGLang raises or hangs"
DIFFERENCES = {
    "hermes": {IGNORED, REPAIRED},
    "qwen_xml": {IGNORED, REPAIRED, VALUES},
    "llama3": {IGNORED, REPAIRED, HANGS, LOOSER},
    "mistral": {IGNORED, REPAIRED, LOOSER, VALUES},
    "deepseek": {IGNORED, REPAIRED, HANGS, VALUES},
    "glm": {IGNORED, REPAIRED, HANGS, VALUES, MISSED},
    "pythonic": {IGNORED, REPAIRED, HANGS, VALUES, MISSED, LOOSER},
}


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter that has SGLang."""
    if not (SGLANG / "bin" / "python").exists():
        pytest.skip(f"SGLang is not installed in {SGLANG.name}: `make test-sglang` installs it, or says why it cannot")
    return SGLANG / "bin" / "python"


def test_our_formats_differ_from_sglangs_detectors_only_as_the_docs_say(python: Path) -> None:
    command = [python, "tests/engine/compare_detectors.py", str(TURNS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    documented = (ROOT / "docs" / "MODELS.md").read_text(encoding="utf-8")
    assert found.keys() == DIFFERENCES.keys()
    for family, result in found.items():
        print(family, result["count"])
        assert sum(result["count"].values()) == TURNS
        different = result["count"].keys() - {"alike"}
        assert different <= DIFFERENCES[family], (family, result["examples"])
        assert all(f"| `{family}` | {kind} |" in documented for kind in DIFFERENCES[family])


def run(python: Path, code: str) -> str:
    done = subprocess.run(
        [python, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_any_detector_of_sglangs_is_a_format(python: Path) -> None:
    said = run(
        python,
        """
        from search_rollout.protocols.prompts import SEARCH_TOOL
        from search_rollout.protocols.tool_formats.sglang import SGLangFormat

        form = SGLangFormat("kimi_k2").with_tools([SEARCH_TOOL])
        begin, end = "<|tool_call_begin|>", "<|tool_call_end|>"
        call = f'{begin}functions.search:0<|tool_call_argument_begin|>{{"queries": ["a"]}}{end}'
        turn = f"Words.<|tool_calls_section_begin|>{call}<|tool_calls_section_end|>"
        print(form.split(turn) == ("Words.", ((turn, "search", {"queries": ["a"]}),)))
        print(form.split("It is Nairobi.") == ("It is Nairobi.", ()))
        broken = form.split(turn.replace("]}", ""))
        print([one.arguments for one in broken.calls])
        """,
    )
    assert said.split("\n")[:3] == ["True", "True", "[None]"]


def test_a_detector_that_takes_for_ever_or_dies_costs_one_turn(python: Path) -> None:
    said = run(
        python,
        """
        import time
        from search_rollout.protocols.prompts import SEARCH_TOOL
        from search_rollout.protocols.tool_formats.sglang import TURN_S, SGLangFormat

        form = SGLangFormat("pythonic").with_tools([SEARCH_TOOL])
        sound = '[search(queries=["a"])]'
        began = time.monotonic()
        print([one.arguments for one in form.split("[search(" + "a=1, " * 60).calls], time.monotonic() - began < TURN_S)
        print([one.arguments for one in form.split(sound).calls])
        form._worker._child.kill()
        print([one.arguments for one in form.split(sound).calls])
        print([one.arguments for one in form.split(sound).calls])
        """,
    )
    sound = "[{'queries': ['a']}]"
    assert said.split("\n")[:4] == ["[None] True", sound, "[None]", sound]


def test_a_name_that_sglang_does_not_know_is_an_error_that_lists_the_known_ones(python: Path) -> None:
    said = run(
        python,
        """
        from search_rollout.protocols.tool_formats.sglang import SGLangFormat
        try:
            SGLangFormat("nonsense")
        except ValueError as error:
            print(error)
        """,
    )
    assert said.startswith("tool_call_format sglang:nonsense: SGLang has no such detector; it has apertus2509, ")
