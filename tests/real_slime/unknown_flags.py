"""Which flags of train.py no parser takes: slime's HEAD drops those in silence. Prints JSON.

    python unknown_flags.py FLAG …      on the import path of slime's workers

Real: the parsers of slime, SGLang and Megatron-LM with all their validation. Replaced: the GPU that Megatron asks for.
"""

import argparse
import contextlib
import io
import json
import sys
import types
from typing import Any

import torch

MAIN_PARSERS = 20  # options; slime's small parsers, which look for one flag each, have fewer


def main(argv: list[str]) -> None:
    torch.cuda.get_device_properties = lambda *_, **__: types.SimpleNamespace(  # type: ignore[assignment]
        major=9, minor=0, name="H100", total_memory=80 << 30
    )
    torch.cuda.get_device_capability = lambda *_, **__: (9, 0)  # type: ignore[assignment]
    untaken: list[set[str]] = []
    abbreviated: list[str] = []
    parse, abbreviations = argparse.ArgumentParser.parse_known_args, argparse.ArgumentParser._get_option_tuples

    def watch(parser: argparse.ArgumentParser, *arguments: Any, **more: Any) -> Any:
        namespace, rest = parse(parser, *arguments, **more)
        if len(parser._option_string_actions) > MAIN_PARSERS:
            untaken.append({word.partition("=")[0] for word in rest if word.startswith("--")})
        return namespace, rest

    def watch_abbreviations(parser: argparse.ArgumentParser, text: str) -> Any:
        found = abbreviations(parser, text)
        abbreviated.extend([text] if found else [])
        return found

    argparse.ArgumentParser.parse_known_args = watch  # type: ignore[method-assign,assignment]
    argparse.ArgumentParser._get_option_tuples = watch_abbreviations  # type: ignore[method-assign]
    sys.argv = ["train.py", *argv]
    from slime.utils.arguments import parse_args

    with contextlib.redirect_stdout(io.StringIO()):  # Megatron prints every argument
        args = parse_args()
    assert untaken, "no parser was watched"
    values = {key: value for key, value in vars(args).items() if isinstance(value, str | int | float | bool | None)}
    print(json.dumps({"unknown": sorted(set.intersection(*untaken)), "abbreviated": abbreviated, "args": values}))


if __name__ == "__main__":
    main(sys.argv[1:])
