"""Audits rollouts: are these the tokens that the model sampled, and is the model trained on those and no others?

    search-r1 audit-tokens dumps/rollout_*.pt --tokenizer MODEL_DIR
    search-r1 audit-tokens dumps/rollout_*.pt --model MODEL_DIR        also run the model over some samples, on the CPU
    search-r1 audit-tokens runs/demo-…

It reads slime's debug dumps (--save-debug-rollout-data) of any plugin, JSONL with the same fields, and the folders of
evaluations and demo runs. Each row is one check over all samples:

    ✓  right      ✗  wrong, with the remedy      !  works, but may be a mistake      –  unknown, with the reason

The exit status is 1 if there is a ✗. Who wrote a token comes from this plugin's record or, without one, from marks in
the text: <information>, tool messages. With --model of a demo run (runs/demo-…/after) it scores only that phase.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from evaluation.audit_checks import Audit
from evaluation.audit_scoring import load_model, score, verdicts
from evaluation.audited import Audited, Reader
from evaluation.plugin import prepare_process
from evaluation.records import tokenizer_of
from evaluation.sample_files import read_samples, sample_files_of
from evaluation.terminal import Progress
from evaluation.verdict_table import Finding, Row, Table
from evaluation.view import load_tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the rows; returns the exit status."""
    options = parse_args(argv)
    prepare_process()
    try:
        return run(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="search-r1 audit-tokens", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="folder of a demo run or an evaluation, dumps (.pt), JSONL")
    parser.add_argument(
        "--tokenizer", type=Path, help="folder of the model that was rolled out (default: the run's own)"
    )
    parser.add_argument("--model", type=Path, help="the same folder with weights: also recomputes log-probabilities")
    parser.add_argument("--samples", type=int, default=32, help="how many samples --model scores (32)")
    parser.add_argument("--temperature", type=float, default=1.0, help="the rollout's temperature, for --model (1.0)")
    parser.add_argument(
        "--sent", choices=["ids", "text"], default="", help="what the rollout sends to the engine, if you know it"
    )
    parser.add_argument(
        "--trust-pickle", action="store_true", help="load dumps with any Python object; runs their code"
    )
    options = parser.parse_args(argv)
    if options.samples < 1 or not options.temperature > 0:
        parser.error("--samples and --temperature must be above 0")
    return options


def run(options: argparse.Namespace) -> int:
    """Reads everything once, then scores some of the samples."""
    began = time.monotonic()
    files = sample_files_of(options.files)
    folder = options.tokenizer or options.model or tokenizer_of(files[0].parent)
    reader = Reader(load_tokenizer(folder)) if folder else None
    audit, chosen = Audit(), _Choice(options.samples if options.model else 0)
    for sample in _read(files, reader, options):
        audit.add(sample)
        if _can_be_scored(sample, options.model):
            chosen.offer(sample)
    if not audit.samples:
        raise ValueError("There is no sample in these files.")
    table = Table(sys.stdout)
    table.write(Row("samples", "read", _summary(audit, len(files))))
    for row in audit.rows():
        table.write(row)
    if options.model:
        for row in _scored(options, chosen.samples):
            table.write(row)
    table.write_count(time.monotonic() - began)
    return int(table.marks["✗"] > 0)


def _read(files: Sequence[Path], reader: Reader | None, options: argparse.Namespace) -> Iterator[Audited]:
    read, total = 0, sum(file.stat().st_size for file in files)
    with Progress("reading", total // 1000, "kB") as progress:
        for file in files:
            for fields, size, where in read_samples(file, trust_pickle=options.trust_pickle):
                read += size
                progress.update(read // 1000 - progress.done)
                yield Audited(fields, where, file, reader, options.sent)


def _can_be_scored(sample: Audited, model: Path | None) -> bool:
    phase = sample.fields.get("phase")
    if not model or sample.misfits or sample.discarded or not sample.log_probs:
        return False
    return bool(sample.trained) and (phase is None or phase == model.resolve().name)


class _Choice:
    """A uniform random choice of the offered samples; repeatable."""

    def __init__(self, size: int) -> None:
        self.samples: list[Audited] = []
        self._size, self._offered, self._random = size, 0, random.Random(0)

    def offer(self, sample: Audited) -> None:
        self._offered += 1
        if len(self.samples) < self._size:
            self.samples.append(sample)
        elif self._size and (place := self._random.randrange(self._offered)) < self._size:
            self.samples[place] = sample


def _summary(audit: Audit, files: int) -> Finding:
    known = ", ".join(f"{count:,} by {how}" for how, count in audit.known.most_common())
    trained = f"{audit.trained:,} of {audit.tokens:,} response tokens are trained"
    return Finding("✓", f"{audit.samples:,} samples, files: {files}; {trained}; authors known: {known}")


def _scored(options: argparse.Namespace, samples: Sequence[Audited]) -> Iterator[Row]:
    if not samples:
        yield Row("model", "log-probs", Finding("–", "no sample has trained tokens with log-probabilities"))
        return
    with Progress("loading the model"):
        model = load_model(options.model)
    largest = max(max(sample.tokens) for sample in samples)
    if largest >= (size := model.get_input_embeddings().num_embeddings):
        found = f"id {largest} is outside its vocabulary of {size:,} tokens"
        yield Row("model", "log-probs", Finding("✗", found, "give the model that was rolled out"))
        return
    scores = []
    with Progress("scoring", len(samples), "samples") as progress:
        for sample in samples:
            scores.append(score(model, sample, options.temperature))
            progress.update()
    yield from verdicts(scores, options.temperature)


if __name__ == "__main__":
    sys.exit(main())
