"""What is looked at: the settings as the launch scripts and the plugin read them, and what several checks share."""

import argparse
import ast
import functools
import os
import subprocess
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from preflight.checkpoint_files import text_config
from preflight.findings import Blocked, Mistake, one_line
from search_rollout.config import PLACEHOLDER_KEY, ConfigError, SearchConfig, load_config

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
BASH_TIMEOUT_S = 20.0  # it asks nvidia-smi, which may take seconds

# The scripts' own way to their settings, which are then the environment; it changes nothing where they have run it.
READ_SETTINGS = 'set -euo pipefail; HERE="$1"; source "$HERE/launch/common.sh"; bound_trajectories; env -0'


class LaunchError(Exception):
    """The settings of the launch scripts cannot be read; the message is their own sentence."""


class Setup:
    """Read-only; shared by the threads of all groups. A property that cannot be had raises Blocked."""

    def __init__(self, environment: Mapping[str, str], engine: str | None = None) -> None:
        """`engine` is the address of one that runs, for a rollout."""
        self.engine = engine
        self.launch_error: LaunchError | None = None
        try:
            self.environment = launch_environment(environment)
        except LaunchError as error:
            self.launch_error, self.environment = error, dict(environment)
        self._defaults = plugin_defaults()  # here, not in the groups' threads: Python 3.11 parses in one at a time
        self._lock = threading.Lock()
        self._made: dict[Callable[[Setup], Any], Future[Any]] = {}

    def __getitem__(self, name: str) -> str:
        """A setting of launch/settings.sh."""
        if self.launch_error:
            raise Blocked("the settings of the launch scripts cannot be read")
        return self.environment[name]

    def once(self, make: "Callable[[Setup], T]") -> T:
        """What `make` returns or raises for this setup: made once, whichever check of whichever group asks first."""
        with self._lock:
            is_first = make not in self._made
            made = self._made.setdefault(make, Future())
        if is_first:
            try:
                made.set_result(make(self))
            except Exception as error:
                made.set_exception(error)
        return made.result()

    def number(self, name: str) -> int:
        """A setting that is a whole number. Raises Mistake: the scripts do not check all of them."""
        try:
            return int(self[name])
        except ValueError as error:
            raise Mistake(f"{name} has value {self[name]!r}", f"set {name} to a whole number") from error

    def is_on(self, name: str) -> bool:
        """A switch, as launch/common.sh reads it."""
        return self[name].lower() in ("1", "true", "yes")

    # --- the plugin's settings ---

    @functools.cached_property
    def yaml(self) -> dict[str, Any]:
        """The keys of CUSTOM_CONFIG_PATH."""
        try:
            return read_yaml(self["CUSTOM_CONFIG_PATH"])
        except (ValueError, ModuleNotFoundError) as error:
            raise Blocked("CUSTOM_CONFIG_PATH cannot be read") from error

    def load_config(self) -> SearchConfig:
        """The settings of rollouts, as slime's workers will have them. Raises ConfigError."""
        return load_config(self._defaults, self.environment, argparse.Namespace(**self.yaml))

    @functools.cached_property
    def config(self) -> SearchConfig:
        """As `load_config`; also where only the key of web search is missing, which has a row of its own."""
        try:
            return self.load_config()
        except ConfigError as error:
            if self.lacks_google_key:
                return self._config_with_some_key()
            raise Blocked("a setting of the rollouts has a wrong value") from error

    @functools.cached_property
    def lacks_google_key(self) -> bool:
        """Whether the settings are right but for a key of web search."""
        try:
            self.load_config()
        except ConfigError:
            try:
                return self._config_with_some_key().search_backend == "google"
            except ConfigError:
                return False
        return False

    def _config_with_some_key(self) -> SearchConfig:
        settings = {key: value for key, value in self.yaml.items() if key != "google_api_key"}
        environment = {**self.environment, "GOOGLE_API_KEY": f"not {PLACEHOLDER_KEY}"}
        return load_config(self._defaults, environment, argparse.Namespace(**settings))

    # --- the model ---

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of HF_CHECKPOINT."""
        try:
            return self.load_tokenizer()
        except Exception as error:
            raise Blocked(f"the tokenizer cannot be loaded: {one_line(error, 100)}") from error

    def load_tokenizer(self) -> Any:
        """As `tokenizer`, with whatever transformers raises."""
        return self.once(_load_tokenizer)

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for the chat template, where the YAML has some."""
        return dict(self.yaml.get("apply_chat_template_kwargs") or {})


def _load_tokenizer(setup: Setup) -> Any:
    folder = setup["HF_CHECKPOINT"]
    if not Path(folder).is_dir():  # transformers would take it for a name on the hub
        raise FileNotFoundError(f"there is no folder {folder}")
    from transformers import AutoTokenizer  # which takes seconds

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
    rows = text_config(Path(folder)).get("vocab_size") or 0
    if len(tokenizer) < rows / 2:  # transformers makes one of a few special tokens where files are missing
        raise ValueError(f"it knows {len(tokenizer)} tokens of the model's {rows}")
    return tokenizer


def launch_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with every setting of launch/settings.sh in it. Raises LaunchError."""
    command = ["bash", "-c", READ_SETTINGS, "bash", str(ROOT)]
    try:
        done = subprocess.run(
            command, env=dict(environment), capture_output=True, timeout=BASH_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise LaunchError("there is no bash") from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"launch/settings.sh took more than {BASH_TIMEOUT_S:.0f} s: does nvidia-smi hang?") from error
    if done.returncode != 0:
        raise LaunchError(one_line(os.fsdecode(done.stderr)).removeprefix("error: "))
    entries = (os.fsdecode(entry) for entry in done.stdout.split(b"\0") if b"=" in entry)
    return dict(entry.split("=", 1) for entry in entries)


def plugin_defaults() -> dict[str, Any]:
    """SEARCH_R1_CONFIGS of generate_with_search.py, read without running that file: it imports slime."""
    module = ast.parse((ROOT / "generate_with_search.py").read_text(encoding="utf-8"))
    for statement in module.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "SEARCH_R1_CONFIGS":
            return ast.literal_eval(statement.value)
    raise LookupError("generate_with_search.py has no SEARCH_R1_CONFIGS")


def read_yaml(path: str) -> dict[str, Any]:
    """The keys of slime's --custom-config-path; none for an empty path. Raises ValueError, in a few words."""
    if not path:
        return {}
    import yaml

    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not YAML ({one_line(error)})") from error
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ValueError(f"{path} does not hold `key: value` lines")
    return settings
