"""Scores recorded trajectories again with another reward, and shows what would have been different.

    search-r1 rescore dumps/rollout_*.pt --preset paper
    search-r1 rescore runs/demo-… --set format_score=0.1 --set retrieval_score=0.1
    search-r1 rescore dumps/rollout_*.pt --reward my_rewards.score --output rescored.jsonl

It reads slime's debug dumps (.pt), JSONL with the same fields, and folders of evaluations and demo runs. It needs no
engine, retriever or GPU: the reward reads the records of the rollouts. --reward accepts any function that works with
slime's --custom-rm-path. Advantages are GRPO's, (reward - mean) / standard deviation within a group, without discarded
samples.
"""

import argparse
import asyncio
import dataclasses
import inspect
import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from evaluation.options import add_sample_options, command_parser
from evaluation.plugin import find_slime, prepare_process
from evaluation.records import whole_file
from evaluation.rescored import Rescored, groups_of, read_recorded, reward_value, set_advantages, table
from evaluation.sample_files import sample_files_of
from evaluation.terminal import exit_code, short
from search_rollout.config import REWARD_PRESETS, RewardScores, load_config

SETTABLE = (*RewardScores._fields, "llm_api_mode", "tool_call_format")  # the last two control how bare text is read
AT_ONCE = 64  # concurrent calls of a reward function, which may ask a server
OURS = "generate_with_search.reward_func"

Scored: TypeAlias = tuple[Any, Rescored]  # slime's Sample, and its row


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("rescore", __doc__)
    add_sample_options(parser, tokenizer=False)
    parser.add_argument("--preset", choices=REWARD_PRESETS, help="use this REWARD_PRESET (default: default)")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help=f"change one of {', '.join(RewardScores._fields)}; for samples without a record of this plugin also "
        "llm_api_mode=chat or tool_call_format. May be repeated",
    )
    parser.add_argument("--reward", metavar="MODULE.FUNCTION", help="your own function, like slime's --custom-rm-path")
    parser.add_argument("--group-rm", action="store_true", help="call it with whole groups, like slime's --group-rm")
    parser.add_argument("--reward-key", help="which value to use if rewards are dicts, like slime's --reward-key")
    parser.add_argument("--output", type=Path, help="JSONL file for each sample's old and new reward and advantage")
    options = parser.parse_args(argv)
    if options.reward and (options.preset or options.set):
        parser.error("--reward replaces our reward, --preset and --set change it: use one or the other")
    if options.group_rm and not options.reward:
        parser.error("--group-rm needs your own function: give --reward")
    prepare_process()
    return exit_code(lambda: run(options))


def run(options: argparse.Namespace) -> int:
    find_slime()
    args = slime_args(options)
    reward = load_reward(options.reward or OURS)
    files = sample_files_of(options.files)
    left_out: defaultdict[str, int] = defaultdict(int)
    ours = not options.reward
    samples = read_recorded(files, options.reward_key, left_out, ours=ours, trust_pickle=options.trust_pickle)
    rows = asyncio.run(_rescore_all(samples, reward, args))
    if not rows:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "the files are empty"
        raise ValueError(f"There is nothing to score again: {why}.")
    groups = groups_of(rows)
    set_advantages(groups)
    if options.output:
        _write(options.output, rows)
    print(table(rows, groups, options.reward or " ".join([options.preset or "default", *options.set])))
    for reason, count in left_out.items():
        print(f"left out: {count:,} {reason}")
    if options.output:
        print(f"{short(options.output)}: {len(rows):,} samples with both rewards and advantages")
    return 0


def slime_args(options: argparse.Namespace) -> argparse.Namespace:
    """slime's args with all of our settings, so that none comes from the environment. Raises ValueError."""
    given = {}
    for entry in options.set:
        key, equals, value = entry.partition("=")
        if not equals or key not in SETTABLE:
            raise ValueError(f"--set is {entry!r}; it must be KEY=VALUE with a KEY of {', '.join(SETTABLE)}.")
        given[key] = value
    import generate_with_search

    asked = argparse.Namespace(search_backend="local", reward_preset=options.preset, **given)
    config = load_config(generate_with_search.SEARCH_R1_CONFIGS, {}, asked)
    settings = dataclasses.asdict(config)
    names = {"reward_key": options.reward_key, "group_rm": options.group_rm, "custom_rm_path": options.reward or OURS}
    return argparse.Namespace(**settings, **names)


def load_reward(path: str) -> Callable[..., Any]:
    """Imports the function, from this folder or PYTHONPATH. Raises ValueError."""
    from slime.utils.misc import load_function

    sys.path.insert(0, str(Path.cwd()))
    try:
        function = load_function(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--reward {path} cannot be imported: {error}; give MODULE.FUNCTION.") from error
    if not callable(function):
        raise ValueError(f"--reward {path} is not a function.")
    return function


async def _rescore_all(
    samples: Iterator[Scored], reward: Callable[..., Any], args: argparse.Namespace
) -> list[Rescored]:
    """Scores everything, AT_ONCE samples at a time; whole groups need all samples first.

    As in slime, discarded samples keep their reward; the others are scored one by one or group by group.
    """
    rows: list[Rescored] = []
    while batch := list(itertools.islice(samples, None if args.group_rm else AT_ONCE)):
        groups: defaultdict[Any, list[Scored]] = defaultdict(list)
        for place, (sample, row) in enumerate(batch):
            if row.kept:
                groups[row.group if args.group_rm and row.group else place].append((sample, row))
        await asyncio.gather(*(_rescore(group, reward, args) for group in groups.values()))
        rows += [row for _, row in batch]
    return rows


async def _rescore(group: Sequence[Scored], reward: Callable[..., Any], args: argparse.Namespace) -> None:
    """Sets the new reward of one sample, or of a whole group with --group-rm."""
    samples, where = [sample for sample, _ in group], group[0][1].where
    try:
        found = reward(args, samples if args.group_rm else samples[0])
        found = await found if inspect.isawaitable(found) else found
    except Exception as error:
        raise ValueError(f"{args.custom_rm_path} failed on {where}: {error!r}.") from error
    rewards = found if args.group_rm else [found]
    if not isinstance(rewards, Sequence) or len(rewards) != len(group):
        raise ValueError(f"{args.custom_rm_path} must return {len(group)} rewards for {where}, not {found!r}.")
    for value, (_, row) in zip(rewards, group, strict=True):
        row.new = reward_value(value, args.reward_key, row.where)


def _write(path: Path, rows: Sequence[Rescored]) -> None:
    """Writes one line per sample; its advantages are null if it has no group to compare with."""
    with whole_file(path) as unfinished, unfinished.open("w", encoding="utf-8") as lines:
        for row in rows:
            old, new = row.advantages or (None, None)
            rewards = {"index": row.number, "where": row.where, "reward": row.old, "new_reward": row.new}
            advantages = {"advantage": old, "new_advantage": new}
            lines.write(json.dumps(rewards | advantages, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
