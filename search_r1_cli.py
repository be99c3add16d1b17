"""search-r1: all commands of this project under one name.

    search-r1 COMMAND …            runs a command; `search-r1 COMMAND --help` explains it
    search-r1 chat RUN             RUN is the folder of a demo run: its model and retriever are started for you;
                                   evaluate RUN, exam RUN and preflight RUN do the same
    search-r1 completion bash      completion for your shell: eval "$(search-r1 completion bash)"

Each command is a module that `python -m MODULE` runs just as well.
"""

import contextlib
import io
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

COMMANDS = {  # name → module, what it does
    "demo": ("demo.train", "train a small language model to search, on this machine's CPU"),
    "data": ("oai_format_data_preprocess", "turn questions and answers into slime's prompt data"),
    "preflight": ("preflight", "check a training setup before it uses a GPU"),
    "serve": ("demo.serve", "serve a demo run's model and retriever until Ctrl-C"),
    "evaluate": ("evaluation.run", "measure a model on question sets, with training's own rollout"),
    "exam": ("evaluation.exam", "find out whether a model searches, and whether that helps it"),
    "chat": ("evaluation.chat", "ask a model questions and watch it search"),
    "compare": ("evaluation.compare", "compare two evaluations question by question"),
    "replay": ("demo.replay", "repeat a demo run's steps, and name the first difference"),
    "view": ("evaluation.view", "browse runs and trajectories in a browser, and compare them"),
    "rescore": ("evaluation.rescore", "score recorded trajectories again, with another reward"),
    "audit-tokens": ("evaluation.audit_tokens", "check the tokens, masks and log-probabilities of rollouts"),
    "retriever": ("local_dense_retriever.retrieval_server", "serve a corpus and its index"),
    "audit-corpus": ("local_dense_retriever.audit", "say what a corpus lacks for evaluation sets"),
    "router": ("token_router", "keep exact token ids in front of SGLang"),
}
ON_A_RUN = ("chat", "evaluate", "exam", "preflight")  # with the folder of a demo run, these go through demo.serve

COMPLETION = """\
_search_r1() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$word"))
  elif [ "${{word:0:1}}" = - ]; then
    local options="$("${{COMP_WORDS[0]}}" "${{COMP_WORDS[1]}}" --help | grep -oE -e '--[a-zA-Z_-]+' | sort -u)"
    COMPREPLY=($(compgen -W "$options" -- "$word"))
  else
    compopt -o default 2>/dev/null
    COMPREPLY=()
  fi
}}
complete -o default -F _search_r1 search-r1 .venv/bin/search-r1
"""
ZSH_PREFIX = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code, or raises the command's SystemExit."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    name, *arguments = words
    if name == "completion":
        return _complete(arguments)
    if name not in COMMANDS:
        print(f"error: {name!r} is not a command; search-r1 --help lists them all", file=sys.stderr)
        return 2
    module, _ = COMMANDS[name]
    if name in ON_A_RUN and arguments and not arguments[0].startswith("-"):
        if not (Path(arguments[0]) / "summary.json").is_file():
            print(f"error: {arguments[0]} is not the folder of a demo run: it has no summary.json", file=sys.stderr)
            return 1
        module, arguments = "demo.serve", [arguments[0], f"--{name}", *arguments[1:]]
    return _run(name, module, arguments)


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = (f"  {name:<{width}}  {does}" for name, (_, does) in COMMANDS.items())
    return "\n".join(["usage: search-r1 COMMAND [ARGUMENT …]", "", (__doc__ or "").strip(), "", "commands:", *rows])


def _complete(arguments: list[str]) -> int:
    shell = arguments[0] if len(arguments) == 1 else ""
    if shell not in ("bash", "zsh"):
        print("usage: search-r1 completion bash|zsh", file=sys.stderr)
        return 2
    print((ZSH_PREFIX if shell == "zsh" else "") + COMPLETION.format(commands=" ".join(COMMANDS)), end="")
    return 0


def _run(name: str, module: str, arguments: list[str]) -> int:
    """As `python -m MODULE ARGUMENTS`, but help and usage call the command by our name."""
    sys.argv = [f"search-r1 {name}", *arguments]
    shown = io.StringIO()
    is_help = bool({"-h", "--help"} & set(arguments))
    try:
        with contextlib.redirect_stdout(shown) if is_help else contextlib.nullcontext():
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        print(f"error: {name} needs {error.name}, which is not installed; run `make install`", file=sys.stderr)
        return 1
    finally:
        print(_renamed(shown.getvalue(), name, module), end="")
    return 0


def _renamed(text: str, name: str, module: str) -> str:
    """Help of a module as help of our command: "python -m preflight --skip" becomes "search-r1 preflight --skip"."""
    path = module.replace(".", "/")
    for spelling in (f"python -m {module}", f"python {path}.py", f"usage: {Path(path).name}.py"):
        text = text.replace(spelling, f"{'usage: ' if spelling.startswith('usage') else ''}search-r1 {name}")
    return text


if __name__ == "__main__":
    sys.exit(main())
