"""The setup under test: the settings as the launch scripts and the plugin read them, and values shared by checks."""

import argparse
import ast
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from evaluation.plugin import read_settings
from preflight.checkpoint_files import text_config
from preflight.findings import Blocked, Mistake, mistake, one_line
from preflight.probe import run
from search_rollout.config import PLACEHOLDER_KEY, ConfigError, SearchConfig, load_config

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
BASH_TIMEOUT_S = 20.0  # it calls nvidia-smi, which may take seconds

# Reads the settings like the scripts and prints the environment. Reading settings twice gives the same result.
READ_SETTINGS = 'set -euo pipefail; HERE="$1"; source "$HERE/launch/common.sh"; bound_trajectories; env -0'
REASONS = {  # of rows that are skipped, by the function that failed; else its message
    "read_custom_config": "CUSTOM_CONFIG_PATH cannot be read",
    "read_config": "a setting of the rollouts has a wrong value",
    "read_model": "HF_CHECKPOINT is not a model folder",
    "count_weights": "the size of the model is not known",
    "rendered_prompt": "the chat template cannot be used",
    "text_after_turn": "turns cannot be appended",
    "read_prompts": "PROMPT_DATA cannot be used",
    "fitting_prompts": "the prompts do not fit the mode",
    "find_servers": "a retriever is not ready",
    "first_passages": "searching fails",
    "find_engine": "the engine does not answer",
}
TOKENIZER_REMEDY = "copy the model's tokenizer files there (tokenizer.json, tokenizer_config.json)"


class Setup:
    """The setup under test: read-only, and shared by the threads of all groups.

    Functions that compute something from it may raise Mistake. The check that reports this mistake calls them with
    `once`, all other checks with `need`.
    """

    def __init__(
        self, environment: Mapping[str, str], engine: str | None = None, train_args: Sequence[str] = ()
    ) -> None:
        """`engine` is the address of a running engine; `train_args` are further arguments for slime's train.py."""
        self.engine = engine
        self.train_args = train_args
        self.launch_error = ""
        try:
            self.environment = launch_environment(environment)
        except Mistake as error:
            self.launch_error, self.environment = str(error), dict(environment)
        self.defaults = plugin_defaults()  # before the groups' threads: Python 3.11 parses in one thread at a time
        self._lock = threading.Lock()
        self._made: dict[Callable[[Setup], Any], Future[Any]] = {}

    def __getitem__(self, name: str) -> str:
        """A setting of launch/settings.sh."""
        if self.launch_error:
            raise Blocked("the settings of the launch scripts cannot be read")
        return self.environment[name]

    def once(self, make: "Callable[[Setup], T]") -> T:
        """Returns or raises what `make` does for this setup; `make` is called only once for all checks."""
        with self._lock:
            is_first = make not in self._made
            made = self._made.setdefault(make, Future())
        if is_first:
            try:
                made.set_result(make(self))
            except Exception as error:
                made.set_exception(error)
        return made.result()

    def need(self, make: "Callable[[Setup], T]") -> T:
        """Like `once`, but raises Blocked with one of REASONS, because another check reports the mistake."""
        try:
            return self.once(make)
        except (Mistake, ModuleNotFoundError) as error:
            raise Blocked(REASONS.get(make.__name__, str(error))) from error

    def number(self, name: str) -> int:
        """A setting as a whole number. Raises Mistake if it is not one: the scripts do not check them all."""
        try:
            return int(self[name])
        except ValueError as error:
            raise Mistake(f"{name} has value {self[name]!r}", f"set {name} to a whole number") from error

    def is_on(self, name: str) -> bool:
        """A switch, read like in launch/common.sh."""
        return self[name].lower() in ("1", "true", "yes")

    # --- the plugin's settings ---

    @property
    def yaml(self) -> dict[str, Any]:
        """The keys of CUSTOM_CONFIG_PATH."""
        return self.need(read_custom_config)

    @property
    def config(self) -> SearchConfig:
        """The rollouts' settings in slime's workers, with a placeholder key if web search has none."""
        return self.need(read_config)

    @property
    def lacks_google_key(self) -> bool:
        """True if web search has no key, which another row reports."""
        return self.config.search_backend == "google" and not self.google_key

    @property
    def google_key(self) -> str:
        """GOOGLE_API_KEY, or the file that holds it; empty if neither is given."""
        given = (self.yaml.get("google_api_key"), *map(self.environment.get, ("GOOGLE_API_KEY", "GOOGLE_API_KEY_FILE")))
        return next((str(key) for key in given if key and key != PLACEHOLDER_KEY), "")

    # --- the model ---

    @property
    def tokenizer(self) -> Any:
        return self.need(load_tokenizer)

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the chat template, from the YAML."""
        return dict(self.yaml.get("apply_chat_template_kwargs") or {})


def read_config(setup: Setup) -> SearchConfig:
    """See `Setup.config`. Raises Mistake."""
    settings = {**setup.yaml, **({} if setup.google_key else {"google_api_key": "no-key-yet"})}
    with mistake("docs/CONFIGURATION.md lists the values of each setting", ConfigError):
        return load_config(setup.defaults, setup.environment, argparse.Namespace(**settings))


def load_tokenizer(setup: Setup) -> Any:
    """See `Setup.tokenizer`. Raises Mistake."""
    folder = setup["HF_CHECKPOINT"]
    rows = text_config(Path(folder)).get("vocab_size") or 0
    from transformers import AutoTokenizer  # which takes seconds

    found = f"the tokenizer of {folder} cannot be loaded: "
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # OSError, ValueError, the tokenizer's own, …, depending on the bad file
        raise Mistake(f"{found}{one_line(error)}", TOKENIZER_REMEDY) from error
    if len(tokenizer) < rows / 2:  # without files, transformers returns a tokenizer of a few special tokens
        raise Mistake(f"{found}it knows {len(tokenizer)} of the model's {rows} tokens", TOKENIZER_REMEDY)
    return tokenizer


def launch_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with every setting of launch/settings.sh. Raises Mistake."""
    done = run(["bash", "-c", READ_SETTINGS, "bash", str(ROOT)], environment, BASH_TIMEOUT_S)
    if done.returncode != 0:
        raise Mistake(one_line(done.stderr).removeprefix("error: "))
    return dict(entry.split("=", 1) for entry in done.stdout.split("\0") if "=" in entry)


def plugin_defaults() -> dict[str, Any]:
    """SEARCH_R1_CONFIGS of generate_with_search.py, read without running that file: it imports slime."""
    module = ast.parse((ROOT / "generate_with_search.py").read_text(encoding="utf-8"))
    for statement in module.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "SEARCH_R1_CONFIGS":
            return ast.literal_eval(statement.value)
    raise LookupError("generate_with_search.py has no SEARCH_R1_CONFIGS")


def read_custom_config(setup: Setup) -> dict[str, Any]:
    """The keys of slime's --custom-config-path; none for an empty path. Raises Mistake."""
    path = setup["CUSTOM_CONFIG_PATH"]
    with mistake("correct the file, or CUSTOM_CONFIG_PATH", ValueError):
        return read_settings(Path(path)) if path else {}
