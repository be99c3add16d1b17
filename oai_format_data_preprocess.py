"""Questions and answers as slime's prompt data: one parquet file a split, for chat mode or for XML mode.

    python oai_format_data_preprocess.py                          Search-R1's NQ and HotpotQA, for LLM_API_MODE=chat
    python oai_format_data_preprocess.py --format xml             the same for LLM_API_MODE=generate
    python oai_format_data_preprocess.py --input questions.jsonl  your own: question and golden_answers, or prompt and
                                                                  reward_model, in each row

An existing file is replaced only with --overwrite. Next to a test split it writes `eval.yaml`, slime's --eval-config
(EVAL_CONFIG of the launch script): 500 questions of each data set, the same as in `search-r1 evaluate`, and all of them
again as a closed-book control, with a prompt that does not mention search.

Columns: prompt, reward_model, data_source, extra_info, metadata, in chat mode tools;
`search_rollout/protocols/prompts.py` makes the prompts. For slime: --input-key prompt --label-key reward_model, for
XML mode --apply-chat-template. The same input gives the same files. Files appear whole or not at all. The exit status
is 1 if a split fails, or if most of its rows were left out.
"""

import argparse
import functools
import itertools
import json
import math
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation.questions import BATCH, choose, closed_book, read_questions, read_rows
from evaluation.records import whole_file, write_json
from evaluation.terminal import exit_code
from qa_em_format import gold_answers
from search_rollout.arguments import whole_number
from search_rollout.protocols.prompts import PromptMode, prompt_row

if TYPE_CHECKING:
    import pyarrow as pa

MODES: dict[str, PromptMode] = {"chat": "chat", "xml": "generate", "text": "text"}  # --format → the prompt's mode
DATA_SOURCES = {  # of a repository with a folder for each; a test split is merged from all seven sets of the paper
    "train": ["nq", "hotpotqa"],
    "test": ["nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle"],
}
STAND_INS = {"test": ("test", "dev", "validation")}  # HotpotQA, 2Wiki and MuSiQue keep the answers of test back
COLUMNS = ("id", "question", "golden_answers", "prompt", "reward_model", "data_source")  # those that are read
MISTAKEN = ("answer", "answers", "gold", "target", "ground_truth")  # columns used instead of golden_answers
CONTROL = "closed_book"  # name of the control set

_SURROGATE = re.compile("[\ud800-\udfff]")
_TAG = re.compile(r"</?(?:think|search|information|answer)>")


class DataError(ValueError):
    """A split cannot be made; the message is one sentence that says why, and what to do."""


class Unusable(NamedTuple):
    """Why a row is left out."""

    reason: str


# --- one row ------------------------------------------------------------------------------------------------------


def convert(raw: object, *, mode: PromptMode, split: str, index: int, source: str) -> dict[str, Any] | Unusable:
    """A raw row of any known shape as a row of prompt data; `source` is for rows that do not name theirs."""
    if not isinstance(raw, Mapping):
        return raw if isinstance(raw, Unusable) else Unusable("not an object")
    question = _question(raw)
    if not question:
        return Unusable("no question")
    golds = _golds(raw.get("golden_answers")) or _golds(raw.get("reward_model"))
    if not golds:
        return Unusable(_no_gold(raw))
    source = _text(raw.get("data_source")) or source
    name = f"{split}_{index}" if raw.get("id") is None else raw["id"]
    if _SURROGATE.search("".join([question, *golds, source, str(name)])):  # JSON may hold halves of characters
        return Unusable("not Unicode")
    extra = {"id": f"{source}/{name}", "split": split, "index": index}
    return prompt_row(question, golds, source, mode=mode, extra=extra)


def _no_gold(raw: Mapping[str, Any]) -> str:
    found = next((name for name in MISTAKEN if _golds(raw.get(name))), None)
    if found is None:
        return "no gold answer"
    return f"no gold answer: it has `{found}`; golden_answers (a list) or reward_model is read"


def _messages(raw: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The messages of the row's prompt, if it has any."""
    prompt: Any = raw.get("prompt")
    if hasattr(prompt, "tolist"):  # a numpy array
        prompt = prompt.tolist()
    return [message for message in prompt if isinstance(message, Mapping)] if isinstance(prompt, list) else []


def _question(raw: Mapping[str, Any]) -> str:
    """The row's question, else the text after "Question:" in its prompt, else a prompt that explains no tags."""
    question = _text(raw.get("question"))
    if question:
        return question
    messages, prompt = _messages(raw), raw.get("prompt")
    if not isinstance(prompt, str):
        prompt = _text(messages[-1].get("content")) if messages else ""
    _, marked, question = prompt.rpartition("Question:")
    return question.strip() if marked or not _TAG.search(prompt) else ""


def _golds(label: object) -> list[str]:
    if isinstance(label, float) and math.isnan(label):  # an empty cell, as pandas writes it
        return []
    return [gold.strip() for gold in gold_answers(label) if gold.strip()]


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


# --- where rows come from -----------------------------------------------------------------------------------------


class Source(NamedTuple):
    """Files by name, in a folder or on the hub; `fetch` gives the path of one."""

    label: str
    names: list[str]
    fetch: Callable[[str], Path]


class Part(NamedTuple):
    """A file of a split, and the data source of its rows where they do not name it."""

    path: Path
    source: str


def local_source(path: Path) -> Source:
    """The files under a folder. Raises DataError."""
    if not path.is_dir():
        raise DataError(f"{path} does not exist; give --input a .parquet or .jsonl file, or a folder of them.")
    names = sorted(found.relative_to(path).as_posix() for found in path.rglob("*") if found.is_file())
    return Source(str(path), names, lambda name: path / name)


def hub_source(repo_id: str, revision: str) -> Source:
    """The files of a data set on the Hugging Face hub. Raises DataError."""
    from huggingface_hub import HfApi, hf_hub_download

    def ask(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # the client's own errors, and those of the HTTP library under it
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DataError(
                f"{repo_id} cannot be read from the hub ({reason}); check --hf_repo_id and the network, or download "
                "it elsewhere and give the folder to --input."
            ) from error

    names = ask(lambda: HfApi().list_repo_files(repo_id, repo_type="dataset", revision=revision))

    def fetch(name: str) -> Path:
        return Path(ask(lambda: hf_hub_download(repo_id, name, repo_type="dataset", revision=revision)))

    return Source(repo_id, sorted(names), fetch)


def split_parts(source: Source, split: str, data_sources: Sequence[str] | None) -> list[Part]:
    """The files of one split: `train.parquet` or its shards, else a folder for each data source. Raises DataError."""
    merged = _files_of(source.names, "", split)
    if merged:
        return [Part(source.fetch(name), Path(source.label).name) for name in merged]
    parts = []
    for folder in data_sources or DATA_SOURCES.get(split, []):
        candidates = (_files_of(source.names, f"{folder}/", name) for name in STAND_INS.get(split, (split,)))
        found = next(filter(None, candidates), None)
        if found is None:
            raise DataError(f"{source.label} has no {split} of {folder}; choose others by --splits or --data_sources.")
        parts += [Part(source.fetch(name), folder) for name in found]
    if not parts:
        raise DataError(f"{source.label} has no {split} split; choose others with --splits.")
    return parts


def _files_of(names: Iterable[str], folder: str, split: str) -> list[str]:
    """`split`.jsonl or .parquet in a folder, whole or in shards; parquet where both are there."""
    wanted = re.compile(rf"{re.escape(folder)}(?:data/)?{re.escape(split)}(?:-\d+-of-\d+)?\.(parquet|jsonl)")
    found = [(name, match[1]) for name in names if (match := wanted.fullmatch(name))]
    kinds = {kind for _, kind in found}
    return [name for name, kind in found if kind == "parquet" or "parquet" not in kinds]


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return Unusable("not JSON")


# --- one split ----------------------------------------------------------------------------------------------------


class Split:
    """One split being made. Iterating over it gives its usable rows, and counts the others from zero."""

    def __init__(self, name: str, parts: Sequence[Part], args: argparse.Namespace) -> None:
        self.name = name
        self.path = args.local_dir / f"{name}.parquet"
        self.written: Counter[str] = Counter()  # rows, by data source
        self.skipped: Counter[str] = Counter()  # rows, by reason
        self.few_shot = 0  # rows whose earlier turns are dropped: prompt data has no room for them
        self.listing = False
        self._parts = parts
        self._args = args

    def __iter__(self) -> Iterator[dict[str, Any]]:
        from tqdm import tqdm

        self.skipped.clear()
        self.few_shot = 0
        wanted, mode = self._args.data_sources, MODES[self._args.format]
        raw_rows = ((part, raw) for part in self._parts for raw in read_rows(part.path, COLUMNS, _parsed))
        with tqdm(raw_rows, desc=self.name, unit=" rows", disable=None) as bar:
            for index, (part, raw) in enumerate(bar):
                row = convert(raw, mode=mode, split=self.name, index=index, source=part.source)
                if isinstance(row, Unusable):
                    self.skipped[row.reason] += 1
                    if self.listing:
                        bar.write(f"{part.path.name} row {index}: {row.reason}: {str(raw)[:200]}", file=sys.stderr)
                elif not wanted or row["data_source"] in wanted:
                    self.few_shot += any(message.get("role") == "assistant" for message in _messages(raw))
                    yield row


def make_split(name: str, parts: Sequence[Part], args: argparse.Namespace) -> Split:
    """Writes `name`.parquet. Raises DataError; the file is then as it was before."""
    import pyarrow as pa

    split = Split(name, parts, args)
    try:
        with whole_file(split.path) as partial:
            split.written = write_parquet(partial, drawn(split, args), MODES[args.format])
            missing = [source for source in args.data_sources or () if not split.written[source]]
            if not split.written or (missing and args.limit is None):
                held = ", ".join(split.written) or f"none at all; left out: {dict(split.skipped)}"
                raise DataError(f"no usable rows of {', '.join(missing) or 'any source'}; there are of: {held}.")
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{error} (read from {', '.join(sorted({str(part.path) for part in parts}))}).") from error
    return split


def drawn(split: Split, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The split's rows, or --limit of them, drawn at random and in their old order. Reads twice, holds no row."""
    kept: Container[int] = range(sys.maxsize)
    if args.limit is not None:
        usable = sum(1 for _ in split)
        kept = set(random.Random(f"{args.seed} {split.name}").sample(range(usable), min(args.limit, usable)))
    split.listing = args.list_skipped
    return (row for number, row in enumerate(split) if number in kept)


def write_parquet(path: Path, rows: Iterator[dict[str, Any]], mode: PromptMode) -> Counter[str]:
    """Writes the rows batch by batch; returns their number by data source."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, written = parquet_schema(mode), Counter[str]()
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := list(itertools.islice(rows, BATCH)):
            writer.write_table(pa.Table.from_pylist(batch, schema))
            written.update(row["data_source"] for row in batch)
    return written


def parquet_schema(mode: PromptMode) -> "pa.Schema":
    """The columns of `prompt_row`, the same whatever the rows hold."""
    import pyarrow as pa

    text = pa.string()
    message = pa.struct({"role": text, "content": text})
    extra = {"id": text, "split": text, "index": pa.int64()}
    tools = {"tools": text} if mode == "chat" else {}
    label = pa.struct({"style": text, "ground_truth": pa.struct({"target": pa.list_(text)})})
    columns = {
        "prompt": text if mode == "text" else pa.list_(message),
        "reward_model": label,
        "data_source": text,
        "extra_info": pa.struct(extra),
        "metadata": pa.struct({**extra, "question": text, "data_source": text, **tools}),
    }
    return pa.schema({**columns, **tools})


# --- evaluation sets ----------------------------------------------------------------------------------------------


def make_evaluation(test: Path, args: argparse.Namespace) -> dict[str, int]:
    """Writes `eval/NAME.parquet` and `eval.yaml` next to a test split; returns set → questions. Raises DataError."""
    folder = args.local_dir.resolve() / "eval"
    sets = evaluation_sets(test, args.eval_per_set)
    entries = [{"name": name, "path": str(folder / f"{name}.parquet")} for name in sets]
    entries[-1]["custom_generate_function_path"] = "generate_with_search.generate_closed_book"
    defaults = {"custom_rm_path": "generate_with_search.exact_match"}
    try:
        for entry in entries:
            with whole_file(Path(entry["path"])) as partial:
                write_parquet(partial, iter(sets[entry["name"]]), MODES[args.format])
        write_json(args.local_dir / "eval.yaml", {"eval": {"defaults": defaults, "datasets": entries}})  # JSON is YAML
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error}).") from error
    return {name: len(rows) for name, rows in sets.items()}


def evaluation_sets(test: Path, per_set: int) -> dict[str, list[dict[str, Any]]]:
    """Name of curve and file → rows: a fixed choice of each data set in a test split, last the closed-book control."""
    questions = read_questions([test])
    chosen = choose(questions, per_set)
    rows: dict[str, list[dict[str, Any]]] = {question.data_source: [] for question in questions}
    for question in chosen:
        rows[question.data_source].append(question.row)
    names: Counter[str] = Counter()
    sets = {_file_name(source, names): some for source, some in rows.items()}
    return sets | {_file_name(CONTROL, names): [closed_book(question).row for question in chosen]}


def _file_name(source: str, taken: Counter[str]) -> str:
    name = re.sub(r"[^\w.-]", "_", source)
    taken[name] += 1
    return name if taken[name] == 1 else f"{name}_{taken[name]}"


# --- the command --------------------------------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--hf_repo_id", default="PeterJinGo/nq_hotpotqa_train", help="data set (default: %(default)s)")
    origin.add_argument("--input", type=Path, help="a .parquet or .jsonl file, or a folder laid out as such a data set")
    parser.add_argument("--revision", default="main", help="branch or commit of the data set (default: %(default)s)")
    parser.add_argument("--format", choices=MODES, default="chat", help="text: XML mode without a chat template")
    parser.add_argument(
        "--local_dir", type=Path, default=Path("/root/nq_search"), help="folder of the output (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.add_argument("--splits", type=_names, help="default: train,test; of one --input file: train")
    parser.add_argument(
        "--data_sources",
        type=_names,
        help="keep only these; where each has a folder, also their order "
        f"(default there: train {','.join(DATA_SOURCES['train'])}; test {','.join(DATA_SOURCES['test'])})",
    )
    parser.add_argument("--limit", type=whole_number(1), help="rows of each split, drawn at random")
    parser.add_argument("--seed", type=int, default=42, help="of that draw (default: %(default)s)")
    parser.add_argument(
        "--eval_per_set",
        type=whole_number(0),
        default=500,
        help="questions of each data set in eval.yaml, of a test split; 0 = no eval.yaml (default: %(default)s)",
    )
    parser.add_argument("--list_skipped", action="store_true", help="show each row that is left out, and why")
    return parser.parse_args(argv)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("give names separated by commas")
    return list(dict.fromkeys(names))


def make_all(args: argparse.Namespace) -> bool:
    """Makes every split and reports on each; whether all were made. Raises DataError if nothing can be read."""
    if args.input is not None and args.input.is_file():
        splits = args.splits or ["train"]
        if len(splits) > 1 or args.input.suffix not in (".parquet", ".jsonl"):
            raise DataError(f"{args.input} must be one split (--splits {splits[0]}) and end in .parquet or .jsonl.")
        whole = [Part(args.input, args.input.stem)]
        return _make_or_say(splits[0], lambda: whole, args)
    source = hub_source(args.hf_repo_id, args.revision) if args.input is None else local_source(args.input)
    made = [
        _make_or_say(split, functools.partial(split_parts, source, split, args.data_sources), args)
        for split in args.splits or ["train", "test"]
    ]
    return all(made)


def _make_or_say(split: str, parts: Callable[[], list[Part]], args: argparse.Namespace) -> bool:
    path = args.local_dir / f"{split}.parquet"
    try:
        if path.exists() and not args.overwrite:
            raise DataError(f"{path} already exists; replace it with --overwrite, or give another --local_dir.")
        made = make_split(split, parts(), args)
        evaluated = make_evaluation(path, args) if split == "test" and args.eval_per_set else {}
    except DataError as error:
        print(f"error: split {split}: {error}", file=sys.stderr)
        return False
    print(f"{path}: {made.written.total()} rows ({_listed(made.written)})")
    if evaluated:
        print(f"{args.local_dir / 'eval.yaml'}: evaluation sets {_listed(evaluated)}")
    for reason, rows in made.skipped.most_common():
        print(f"  {rows} rows left out: {reason}")
    if made.few_shot:
        print(
            f"warning: {made.few_shot} prompts had few-shot turns, which are dropped: only the question is kept. Let "
            "slime read such prompts as they are (--prompt-data with your own file).",
            file=sys.stderr,
        )
    left_out = made.skipped.total()
    if left_out > made.written.total() and args.limit is None:
        print(f"error: split {split}: most rows ({left_out}) were left out; --list_skipped shows them", file=sys.stderr)
        return False
    return True


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {rows}" for name, rows in counts.items())


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        return exit_code(lambda: 0 if make_all(args) else 1)
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is missing; install it with: pip install -e '.[data]'", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
