"""Reads and checks the questions of an evaluation, rows of slime's prompt data, and picks a fixed choice of each set.

Files are .parquet or .jsonl, as written by `oai_format_data_preprocess.py` or with the same columns:

    prompt        messages, or a string
    tools         only in chat mode
    reward_model  {"ground_truth": {"target": [gold answers]}}
    data_source   the set, such as "nq"
    metadata      {"question": …}; `extra_info` or a column named `question` also works
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import qa_em_format

BATCH = 2000  # rows of a parquet file read together
FROM_MEMORY = (
    "Answer the question from memory. First reason inside <think> and </think>, "
    "then give the answer in a few words with <answer>answer</answer>."
)


@dataclass(frozen=True)
class Question:
    id: str  # digest of text, gold answers and set: the same in every file, order and mode
    data_source: str
    text: str
    golds: tuple[str, ...]
    row: dict[str, Any]


def read_questions(files: Iterable[Path]) -> list[Question]:
    """Every row of the files. Raises ValueError, in one sentence, for a file or row that cannot be used."""
    questions: list[Question] = []
    met: Counter[str] = Counter()
    for file in files:
        for number, row in enumerate(_rows(file), start=1):
            try:
                question = _question(row, met)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                reason = f"it has no {error}" if isinstance(error, KeyError) else error
                raise ValueError(f"Row {number} of {file} cannot be asked: {reason}.") from error
            questions.append(question)
    if not questions:
        raise ValueError("The data files hold no rows.")
    return questions


def choose(questions: Sequence[Question], per_set: int | None, seed: int = 0) -> list[Question]:
    """At most `per_set` questions of each set: those whose ids hash lowest, independent of row order.

    A larger `per_set` adds to the choice of a smaller one.
    """
    lots = sorted(questions, key=lambda question: hashlib.sha256(f"{seed}:{question.id}".encode()).hexdigest())
    taken: Counter[str] = Counter()
    chosen = []
    for question in lots:
        if per_set is None or taken[question.data_source] < per_set:
            taken[question.data_source] += 1
            chosen.append(question)
    return chosen


def mode_of(questions: Sequence[Question]) -> str:
    """The mode that all rows were prepared for: "chat" if they have tools, else "xml". Raises ValueError."""
    tools = (question.row.get("tools") for question in questions)  # a list, an array, a string or None
    modes = {"chat" if one is not None and len(one) else "xml" for one in tools}
    if len(modes) > 1:
        raise ValueError("Some rows have tools and some have none; evaluate chat and XML prompts in separate runs.")
    return modes.pop()


def closed_book(question: Question) -> Question:
    """The question with a prompt that asks for an answer from memory, as messages if its own prompt is."""
    prompt = closed_book_prompt(question.text, as_text=isinstance(question.row["prompt"], str))
    return replace(question, row={**question.row, "prompt": prompt})


def closed_book_prompt(question: str, *, as_text: bool = False) -> list[dict[str, str]] | str:
    """A prompt with the question that does not mention searching."""
    if as_text:
        return f"{FROM_MEMORY}\n\nQuestion: {question}\n"
    return [{"role": "system", "content": FROM_MEMORY}, {"role": "user", "content": question}]


def _question(row: Mapping[str, Any], met: Counter[str]) -> Question:
    prompt = row["prompt"]
    if not isinstance(prompt, str) and not (prompt and all("role" in message for message in prompt)):
        raise ValueError("its prompt is neither a string nor messages")
    golds = tuple(qa_em_format.gold_answers(row["reward_model"]))
    if not any(gold.strip() for gold in golds):
        raise ValueError("its reward_model holds no gold answer")
    source = str(row["data_source"])
    holders = (row.get("metadata"), row.get("extra_info"), row)
    text = next((held["question"] for held in holders if isinstance(held, Mapping) and held.get("question")), None)
    if text is None:
        raise ValueError("neither its metadata nor its extra_info has the question's text")
    digest = hashlib.sha256(json.dumps([source, text, golds]).encode()).hexdigest()[:16]
    met[digest] += 1  # a set may repeat a question
    name = f"{digest}-{met[digest]}" if met[digest] > 1 else digest
    return Question(f"{source}/{name}", source, str(text), golds, dict(row))


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    if file.suffix not in (".parquet", ".jsonl"):
        raise ValueError(f"{file} is neither .parquet nor .jsonl.")
    try:
        yield from read_rows(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot read {file}: {error}.") from error


def read_rows(
    path: Path, columns: Container[str] | None = None, parse: Callable[[bytes], Any] = json.loads
) -> Iterator[Any]:
    """The rows of a parquet file, only these `columns`, or of a JSON-lines file. Raises OSError and ValueError.

    `parse` reads a line.
    """
    if path.suffix == ".parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if columns is None or name in columns]
            for batch in file.iter_batches(BATCH, columns=names):
                yield from batch.to_pylist()
    else:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    if line.strip():
                        yield parse(line)
                except ValueError as error:
                    raise ValueError(f"line {number} is not JSON ({error})") from error
