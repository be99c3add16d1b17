"""Our tool-call formats beside SGLang's detectors, on random turns; run by SGLang's Python, prints JSON.

    .venv-sglang/bin/python tests/engine/compare_detectors.py 20000     from the repository root

For each family: how many turns both read alike, and for every kind of difference how often it occurs and examples.
"""

import json
import logging
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

os.environ |= {"SGLANG_FORWARD_UNKNOWN_TOOLS": "1", "SGLANG_USE_CPU_ENGINE": "1"}
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from family_turns import TOOL, fuzzed, sound_turn
from sglang.srt.entrypoints.openai.protocol import Tool
from sglang.srt.function_call.function_call_parser import FunctionCallParser

from search_rollout.protocols.tool_formats import FORMATS

DETECTORS = {
    "hermes": "hermes",
    "qwen_xml": "qwen3_coder",
    "llama3": "llama3",
    "mistral": "mistral",
    "deepseek": "deepseekv31",
    "glm": "glm45",
    "pythonic": "pythonic",
}
LIMIT_S = {"pythonic": 0.03}  # a turn, for the detector that hangs on thousands of them; 2 s for all others
Calls = list[tuple[str, Any]]


class TooLate(BaseException):
    pass


def too_late(*_: Any) -> None:
    raise TooLate


def theirs(detector: str, turn: str) -> Calls | None:
    """The calls that SGLang reads; None if it raises or takes longer than LIMIT_S."""
    try:
        signal.setitimer(signal.ITIMER_REAL, LIMIT_S.get(detector, 2.0))
        _, calls = FunctionCallParser([Tool(**TOOL)], detector).parse_non_stream(turn)
        return [(call.name, json.loads(call.parameters)) for call in calls]
    except (Exception, TooLate):
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def kind(ours: Calls, unreadable: int, them: Calls | None) -> str:
    """What the difference is."""
    if them is None:
        return "SGLang raises or hangs"
    if ours == them:
        return "alike" if not unreadable else "a broken call that SGLang ignores: ours is an error"
    if unreadable:
        return "a broken call that SGLang repairs, or for which it drops others: ours is an error"
    if len(ours) > len(them):
        return "a call that SGLang misses"
    if len(ours) < len(them):
        return "a call that ours reads as text"
    return "the same calls with other values"


def main(turns: int) -> None:
    signal.signal(signal.SIGALRM, too_late)
    logging.disable(logging.CRITICAL)
    found = {}
    for family, detector in DETECTORS.items():
        choose, form = random.Random(family), FORMATS[family].with_tools([TOOL])
        count: Counter[str] = Counter()
        examples: dict[str, list[Any]] = {}
        for _ in range(turns):
            turn = sound_turn(choose, family) if choose.random() < 0.5 else fuzzed(choose, family)
            calls = form.split(turn).calls
            ours = [(call.name, call.arguments) for call in calls if call.arguments is not None]
            them = theirs(detector, turn)
            what = kind(ours, sum(call.arguments is None for call in calls), them)
            count[what] += 1
            if what != "alike" and len(turn) < 400:
                examples[what] = sorted([*examples.get(what, []), (turn, ours, them)], key=lambda one: len(one[0]))[:4]
        found[family] = {"count": count, "examples": examples}
    print(json.dumps(found, ensure_ascii=True))


if __name__ == "__main__":
    main(int(sys.argv[1]))
