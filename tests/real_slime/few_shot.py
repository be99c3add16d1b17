"""Questions that SmolLM2-135M, untrained, answers by searching: three worked examples stand before each of them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from search_rollout.protocols.prompts import CHAT_INSTRUCTIONS, SEARCH_TOOL, XML_INSTRUCTIONS, PromptMode

EXAMPLES = {"France": "Paris", "Japan": "Tokyo", "Peru": "Lima"}
ASKED = {"Chad": "N'Djamena", "Kenya": "Nairobi", "Italy": "Rome", "Spain": "Madrid"}
ASKED |= {"Egypt": "Cairo", "Mali": "Bamako", "Nepal": "Kathmandu", "Ghana": "Accra"}


def write_prompt_data(path: Path, mode: PromptMode) -> None:
    """slime's prompt data: a row per country of ASKED."""
    tools = {"tools": json.dumps([SEARCH_TOOL])} if mode == "chat" else {}
    rows = [_row(country, _prompt(mode, country)) | tools for country in ASKED]
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_collapse(path: Path, good: int, bad: int) -> None:
    """Prompt data of generate mode: `good` rows that get a well-formed answer at once, then `bad` rows that loop."""
    examples = [
        turn
        for country, capital in EXAMPLES.items()
        for turn in (_question(country), {"role": "assistant", "content": _answer(capital)})
    ]
    system = {"role": "system", "content": XML_INSTRUCTIONS}
    answered = _row("Italy", [system, *examples, _question("Italy")])
    loop = _row("Italy", [{"role": "user", "content": "la " * 40}])
    pq.write_table(pa.Table.from_pylist([answered] * good + [loop] * bad), path)


def write_questions(path: Path) -> None:
    """The questions of ASKED as `oai_format_data_preprocess.py` reads them."""
    rows = [{"question": _question(country)["content"], "golden_answers": [ASKED[country]]} for country in ASKED]
    path.write_text("".join(json.dumps({**row, "data_source": "capitals"}) + "\n" for row in rows), encoding="utf-8")


def write_corpus(path: Path) -> None:
    """A passage per capital, those of the examples included."""
    passages = (
        {"id": str(number), "contents": f'"{country} capital"\nThe capital of {country} is {capital}.'}
        for number, (country, capital) in enumerate({**ASKED, **EXAMPLES}.items())
    )
    path.write_text("".join(json.dumps(passage) + "\n" for passage in passages), encoding="utf-8")


def _row(country: str, prompt: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "reward_model": {"style": "rule", "ground_truth": {"target": [ASKED[country]]}},
        "data_source": "capitals",
        "metadata": {"id": country, "data_source": "capitals"},
    }


def _prompt(mode: PromptMode, country: str) -> list[dict[str, str]]:
    instructions = CHAT_INSTRUCTIONS if mode == "chat" else XML_INSTRUCTIONS
    return [{"role": "system", "content": instructions}, *_examples(mode), _question(country)]


def _question(country: str) -> dict[str, str]:
    return {"role": "user", "content": f"What is the capital of {country}?"}


def _examples(mode: PromptMode) -> list[dict[str, Any]]:
    return [turn for country, capital in EXAMPLES.items() for turn in _example(mode, country, capital)]


def _example(mode: PromptMode, country: str, capital: str) -> list[dict[str, Any]]:
    query = f"capital of {country}"
    found = f'Doc 1(Title: "{country} capital") The capital of {country} is {capital}.'
    thought = "<think>I need to search.</think>\n"
    answer = _answer(capital)
    if mode != "chat":
        searched = f"{thought}<search>{query}</search>\n\n<information>{found}</information>\n\n{answer}"
        return [_question(country), {"role": "assistant", "content": searched}]
    call = json.dumps({"name": "search", "arguments": {"queries": [query]}})
    return [
        _question(country),
        {"role": "assistant", "content": f"{thought}<tool_call>\n{call}\n</tool_call>"},
        {"role": "user", "content": f"<tool_response>\n{found}\n</tool_response>"},
        {"role": "assistant", "content": answer},
    ]


def _answer(capital: str) -> str:
    return f"<think>It is {capital}.</think>\n<answer>{capital}</answer>"
