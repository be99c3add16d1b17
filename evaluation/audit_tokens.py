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
import heapq
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from evaluation.audit_checks import Audit
from evaluation.audit_scoring import load_model, score, scored_places, verdicts
from evaluation.audited import Audited, Reader
from evaluation.options import add_sample_options, command_parser
from evaluation.plugin import prepare_process
from evaluation.records import tokenizer_of
from evaluation.sample_files import read_all, sample_files_of
from evaluation.terminal import Progress, exit_code
from evaluation.verdict_table import Finding, Row, Table
from evaluation.view import load_tokenizer
from search_rollout.arguments import whole_number


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("audit-tokens", __doc__)
    add_sample_options(parser)
    parser.add_argument("--model", type=Path, help="the same folder with weights: also recomputes log-probabilities")
    parser.add_argument("--samples", type=whole_number(1), default=32, help="how many samples --model scores (32)")
    parser.add_argument("--temperature", type=float, default=1.0, help="the rollout's temperature, for --model (1.0)")
    parser.add_argument(
        "--sent", choices=["ids", "text"], default="", help="what the rollout sends to the engine, if you know it"
    )
    options = parser.parse_args(argv)
    if not options.temperature > 0:
        parser.error("--temperature must be above 0")
    prepare_process()
    return exit_code(lambda: run(options), failure=2)


def run(options: argparse.Namespace) -> int:
    """Reads everything once, then scores some of the samples."""
    began = time.monotonic()
    files = sample_files_of(options.files)
    folder = options.tokenizer or options.model or tokenizer_of(files[0].parent)
    reader = Reader(load_tokenizer(folder)) if folder else None
    audit = Audit()
    lots = random.Random(0)  # a uniform choice, the same every time
    chosen = heapq.nsmallest(options.samples, _scorable(files, reader, audit, options), key=lambda _: lots.random())
    if not audit.samples:
        raise ValueError("There is no sample in these files.")
    table = Table(sys.stdout)
    known = ", ".join(f"{count:,} by {how}" for how, count in audit.known.most_common())
    trained = f"{audit.trained:,} of {audit.tokens:,} response tokens are trained"
    read = f"{audit.samples:,} samples, files: {len(files)}; {trained}; authors known: {known}"
    table.write(Row("samples", "read", Finding("✓", read)))
    for row in audit.rows():
        table.write(row)
    if options.model:
        for row in _scored(options, chosen):
            table.write(row)
    table.write_count(time.monotonic() - began)
    return int(table.marks["✗"] > 0)


def _scorable(
    files: Sequence[Path], reader: Reader | None, audit: Audit, options: argparse.Namespace
) -> Iterator[Audited]:
    """Audits every sample, and gives those that --model can score."""
    for found in read_all(files, "reading", trust_pickle=options.trust_pickle):
        sample = Audited(found.fields, found.where, found.path, reader, options.sent)
        audit.add(sample)
        fits = options.model and found.fields.get("phase") in (None, options.model.resolve().name)
        if fits and not sample.misfits and not sample.discarded and sample.log_probs and scored_places(sample).size:
            yield sample


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
