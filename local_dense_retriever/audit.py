"""Checks whether a corpus holds the answers of evaluation questions and the pages they need.

    python -m local_dense_retriever.audit --corpus_path wiki-18.jsonl --data hotpotqa/dev.jsonl musique/dev.jsonl

For each set it prints

    answer in a passage   share of questions with a gold answer, normalised as for exact match, in some passage: a hint
    all needed pages      share of questions for which the corpus has every page that their row names. If all rows name
                          their pages, exact match by reading those pages cannot exceed this share

README.md in this folder says how to read them. The corpus is read once, line by line. The result is stored beside it as
<corpus>.audit.json: the same audit is never repeated, and the server, preflight and evaluations report it.
"""

import argparse
import functools
import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

if not __package__:  # started by path: Python then looks for modules in this folder, where our package is not
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from local_dense_retriever.corpus import Corpus, Passage
from local_dense_retriever.errors import InputError, run_command
from local_dense_retriever.files import write_json
from local_dense_retriever.gold_pages import Asked, Page, read_asked, title_key
from local_dense_retriever.notes import SetAudit, audit_path, read_audits, sentence, share
from qa_em_format import normalize_answer

SHOWN = 5  # missing pages printed per set


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--corpus_path", required=True, help="jsonl file, one passage a line")
    add(
        "--data",
        nargs="+",
        type=Path,
        required=True,
        metavar="FILE",
        help=".jsonl or .parquet files of questions; a set is named by its rows' data_source, or by the file's folder",
    )
    add("--missing", type=Path, metavar="FILE", help="write everything that is missing to this file, as JSON lines")
    args = parser.parse_args(argv)

    def report() -> None:
        audits = audit(Corpus(args.corpus_path), args.data)
        print(table(audits))
        if args.missing:
            lines = [
                {"set": audit.name, **one} for audit in audits for one in audit.missing_pages + audit.missing_answers
            ]
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            args.missing.write_text(text, encoding="utf-8")
            print(f"\n{args.missing}: {len(lines):,} lines")

    return run_command(report, interrupted="this audit was not saved")


def audit(corpus: Corpus, files: Iterable[Path]) -> list[SetAudit]:
    """Audits the corpus for each set of questions; skips reading it if a stored audit covers them."""
    by_set: defaultdict[str, list[Asked]] = defaultdict(list)
    for file in files:
        for question in read_asked(file):
            by_set[question.data_set].append(question)
    if not by_set:
        raise InputError("the files given to --data have no questions")
    known = {audit.name: audit for audit in read_audits(corpus)}
    new = {
        name: questions
        for name, questions in by_set.items()
        if name not in known or known[name].asked != digest(questions)
    }
    if new:
        passages = tqdm(corpus, total=len(corpus), unit=" passages", desc=f"reading {corpus.path.name}", delay=2)
        pages, answers = lacking(passages, [question for questions in new.values() for question in questions])
        known |= {name: summary(name, questions, pages, answers) for name, questions in new.items()}
        sets = [one._asdict() for one in known.values()]
        write_json(audit_path(corpus.path), {"corpus": corpus.digest, "sets": sets})
    else:
        print(f"this corpus was audited before: {audit_path(corpus.path)}")
    return [known[name] for name in by_set]


def digest(questions: Sequence[Asked]) -> str:
    """A digest of everything about the questions that an audit depends on."""
    text = "\n".join(repr((one.id, one.golds, sorted(one.answers), sorted(one.pages))) for one in questions)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def lacking(passages: Iterable[Passage], questions: Sequence[Asked]) -> tuple[set[Page], set[str]]:
    """The pages and answers that these questions need and no passage has."""
    pages = {page for question in questions for page in question.pages}
    answers = {answer for question in questions for answer in question.answers}
    # Compare an answer only with passages that contain its rarest word.
    uses = Counter(word for answer in answers for word in set(answer.split()))
    by_word: defaultdict[str, set[str]] = defaultdict(set)
    for answer in answers:
        by_word[min(answer.split(), key=lambda word: (uses[word], word))].add(answer)
    for passage in passages:
        pages.discard(Page("title", _title_key(passage.contents.partition("\n")[0])))
        pages.discard(Page("passage_id", passage.id))
        text = f" {normalize_answer(passage.contents)} " if by_word else ""
        for word in by_word.keys() & text.split():
            held = {answer for answer in by_word[word] if f" {answer} " in text}
            answers -= held
            by_word[word] -= held
            if not by_word[word]:
                del by_word[word]
    return pages, answers


_title_key = functools.lru_cache(1024)(title_key)  # the passages of a page are consecutive


def summary(name: str, questions: Sequence[Asked], pages: set[Page], answers: set[str]) -> SetAudit:
    """A set's figures, from the pages and answers that no passage has."""
    looked_up = [question for question in questions if question.answers]
    unanswered = [question for question in looked_up if question.answers <= answers]
    missing: dict[Page, dict] = {}
    for question in questions:
        for page, title in question.pages.items():
            if page in pages:
                missing.setdefault(page, {page.kind: title, "questions": []})["questions"].append(question.id)
    named = [question.pages for question in questions if question.pages]
    return SetAudit(
        name,
        digest(questions),
        questions=len(questions),
        looked_up=len(looked_up),
        answered=len(looked_up) - len(unanswered),
        named=len(named),
        complete=sum(map(pages.isdisjoint, named)),
        missing_pages=list(missing.values()),
        missing_answers=[{"golds": question.golds, "question": question.id} for question in unanswered],
    )


def table(audits: Sequence[SetAudit]) -> str:
    """The figures of each set, a sentence about it, and a few of the pages that are missing."""
    rows = [("set", "questions", "answer in a passage", "name their pages", "all needed pages")]
    for audit in audits:
        answered, complete = share(audit.answered, audit.looked_up), share(audit.complete, audit.named)
        rows.append((audit.name, f"{audit.questions:,}", answered, f"{audit.named:,}", complete))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    for audit in audits:
        lines += ["", sentence(audit)]
        for page in audit.missing_pages[:SHOWN]:
            (kind, name), (_, asking) = page.items()
            needed_by = f"question {asking[0]}" if len(asking) == 1 else f"{len(asking)} questions"
            lines.append(f"  missing {kind.replace('_', ' ')} {name!r}, needed by {needed_by}")
        if (more := len(audit.missing_pages) - SHOWN) > 0:
            lines.append(f"  and {more:,} more: use --missing FILE to list them all")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
