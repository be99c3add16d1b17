"""Converts a Sample to the viewer's data: a row of its list, and the record that the row opens.

Rows are small and loaded at once; records are large and loaded when opened.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.records import rollout_of
from evaluation.token_texts import TokenTexts
from qa_em_format import gold_answers
from search_rollout.protocols.base import FAULTS
from search_rollout.samples.record import RecordError, RolloutRecord

MAX_TITLE = 300  # characters of a question or an answer in the list
_SPECIAL = re.compile(r"<\|[^|<>]*\|>")

Json = dict[str, Any]


def trajectory(fields: Mapping[str, Any], file: str, texts: TokenTexts) -> tuple[Json, Json]:
    """The row and the record of one Sample. Raises ValueError if the fields cannot belong to a Sample."""
    ids, length = fields.get("tokens"), fields.get("response_length")
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        if "reward_parts" in fields:
            raise ValueError(
                "this demo log is from an older version and has no token ids; evaluate its model and view that"
            )
        raise ValueError("`tokens` is not a list of whole numbers")
    if type(length) is not int or not 0 <= length <= len(ids):
        raise ValueError(f"`response_length` is not a whole number from 0 to {len(ids)}, the number of tokens")
    metadata = _mapping(fields.get("metadata"))
    rollout, damage = None, ""
    try:
        rollout = rollout_of(fields)
    except RecordError as error:
        damage = str(error)
    texts.add(ids)
    start, mask, log_probs = len(ids) - length, fields.get("loss_mask"), fields.get("rollout_log_probs")
    several = _mapping(fields.get("reward"))  # with --reward-key
    parts = {**_mapping(rollout.score if rollout else None), **several}
    own = {"prompt": ids[:start], "response": ids[start:]}
    other_texts = {  # those that differ from their decoded ids
        name: fields[name]
        for name, part in own.items()
        if isinstance(fields.get(name), str) and texts.decode(part) != fields[name]
    }
    record: Json = {
        "ids": ids,
        "start": start,  # where the response begins
        "mask": None if mask is None else [int(value) for value in mask],
        "log_probs": None if log_probs is None else [_thousandths(value) for value in log_probs],
        "segments": [list(span) for span in rollout.spans] if rollout else [],
        "searches": searches_of(rollout),
        "parts": {str(name): _plain(value) for name, value in parts.items() if name != "reward" or several},
        "counts": {str(name): _plain(value) for name, value in _mapping(fields.get("scores")).items()},
        "facts": _facts(fields, rollout),
        "texts": {} if rollout and rollout.discarded else other_texts,  # its ids are fillers
    }
    return _row(fields, metadata, rollout, record, file) | {"notes": _notes(fields, rollout, damage, record)}, record


def _row(
    fields: Mapping[str, Any], metadata: Mapping[str, Any], rollout: RolloutRecord | None, record: Json, file: str
) -> Json:
    parts = record["parts"]
    right = parts.get("exact_match", parts.get("em", record["counts"].get("em")))
    answer = parts.get("answer", record["counts"].get("answer"))
    length = len(record["ids"]) - record["start"]
    mask = [1] * length if record["mask"] is None else record["mask"]
    scored = [value for value, on in zip(record["log_probs"] or (), mask, strict=False) if on and value is not None]
    group, phase = fields.get("group_index"), str(fields.get("phase") or "")  # of a demo run
    name = fields.get("id", metadata.get("question_id"))  # from the evaluation, the demo run or the data
    return {
        "id": str(name)[:MAX_TITLE] if isinstance(name, (str, int)) else "",
        "question": title(fields.get("prompt"), metadata),
        "gold": [answer[:MAX_TITLE] for answer in gold_answers(fields.get("label"))],
        "answer": None if answer is None else str(answer)[:MAX_TITLE],
        "reward": _finite(fields.get("reward")),
        "right": None if right is None else bool(right),
        "stop": rollout.stop.value if rollout else str(fields.get("status") or "unknown"),
        "status": str(fields.get("status") or ""),
        "searches": len(record["searches"]),
        "tokens": length,
        "trained": sum(map(bool, mask)),
        "log_prob": sum(scored) / len(scored) / 1000 if scored else None,
        "source": str(fields.get("data_source") or metadata.get("data_source") or ""),
        "phase": phase,
        "file": file,
        "group": None if group is None else f"{file} {phase} {group}",
        "index": fields.get("index"),
    }


def title(prompt: Any, metadata: Mapping[str, Any]) -> str:
    """The question for the list: from the metadata, else the last line of the prompt's user text."""
    if isinstance(metadata.get("question"), str):
        return metadata["question"][:MAX_TITLE]
    if isinstance(prompt, Sequence) and not isinstance(prompt, str):
        said = [_mapping(message).get("content") for message in prompt if _mapping(message).get("role") == "user"]
        prompt = next((text for text in reversed(said) if isinstance(text, str)), "")
    lines = [line.strip() for line in _SPECIAL.sub("\n", str(prompt or "")).split("\n")]
    sentence = next((line for line in reversed(lines) if " " in line), "".join(lines))  # skips "assistant"
    return sentence.rpartition("Question:")[2].strip()[:MAX_TITLE]


def _notes(fields: Mapping[str, Any], rollout: RolloutRecord | None, damage: str, record: Json) -> list[str]:
    """What a reader should know before trusting the record."""
    notes = [damage] if damage else []
    length = len(record["ids"]) - record["start"]
    if (rollout and rollout.discarded) or fields.get("remove_sample"):
        notes.append("discarded: not trained")
    if record["texts"]:
        notes.append("text differs from decode(ids)")
    for name, values in (("loss_mask", record["mask"]), ("rollout_log_probs", record["log_probs"])):
        if values is not None and len(values) != length:
            notes.append(f"{name} does not have one value per token")
    return notes


def _facts(fields: Mapping[str, Any], rollout: RolloutRecord | None) -> Json:
    """Other recorded values of the rollout that are single values."""
    facts: Json = {}
    if rollout:
        faults = [
            f"turn {n}: {FAULTS.get(turn.fault, turn.fault)}" for n, turn in enumerate(rollout.turns, 1) if turn.fault
        ]
        mistakes = [f"turn {n}: {mistake}" for n, turn in enumerate(rollout.turns, 1) for mistake in turn.mistakes]
        facts = {"trajectory_id": rollout.trajectory_id, "turns": rollout.model_turns}
        facts |= {"corrections": rollout.corrections, "search_seconds": _finite(rollout.search_seconds)}
        facts |= {"format": "; ".join(faults)} if faults else {}
        facts |= {"tool calls": "; ".join(mistakes)} if mistakes else {}
    versions = fields.get("weight_versions")
    return facts | ({"weight_versions": ", ".join(dict.fromkeys(map(str, versions)))} if versions else {})


def searches_of(rollout: RolloutRecord | None) -> list[Json]:
    """Turn, query, error, and passages with their scores of each of the rollout's searches."""
    return [
        {
            "turn": number,
            "query": str(result.query),
            "error": _plain(result.error),
            "documents": [[str(passage.title), str(passage.text)] for passage in result.passages],
            "scores": [passage.score for passage in result.passages],
        }
        for number, turn in enumerate(rollout.turns if rollout else [], start=1)
        for result in turn.results
    ]


# --- values of any origin ----------------------------------------------------------------------------------------


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _thousandths(value: Any) -> int | None:
    """A natural logarithm as an integer in thousandths: short in the page, and precise enough for display."""
    number = _finite(value)
    return None if number is None else round(1000 * number)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _plain(value: Any) -> str | bool | float | None:
    if value is None or isinstance(value, (bool, str)):
        return value
    number = _finite(value)
    return str(value) if number is None else number
