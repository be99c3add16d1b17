"""Checks the modes and prints the runtime environment of a Ray job as JSON.

    python -m launch.job_environment [--joining] NAME=VALUE …

It contains every setting in our environment, plus the given variables. All users of a machine can read command lines,
so API keys are left out. A Ray started by the launch script inherits them; a running cluster (`--joining`) needs the
path of a file with the key on every node.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence

from search_rollout.config import CHOICES, PLACEHOLDER_KEY, ConfigError, SearchConfig, secret_keys, variables


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--joining", action="store_true", help="the job runs on an existing cluster")
    parser.add_argument("variables", nargs="*", metavar="NAME=VALUE", help="further variables of the job")
    args = parser.parse_args(argv)
    further = dict(entry.split("=", 1) for entry in args.variables)
    try:
        modes = {key: os.environ[name] for key, name in variables().items() if key in CHOICES and os.environ.get(name)}
        SearchConfig(**modes, google_api_key="unchecked", search_cache="unchecked")  # type: ignore[arg-type]
        print(json.dumps({"env_vars": {**job_variables(os.environ, joining=args.joining), **further}}))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def job_variables(environment: Mapping[str, str], *, joining: bool) -> dict[str, str]:
    """The settings in `environment` that a job needs. Raises ConfigError if a key cannot reach it."""
    found = {}
    secrets = {variables()[key] for key in secret_keys()}
    for name in variables().values():
        file = f"{name}_FILE"
        if name in secrets and environment.get(file):
            found[file] = os.path.abspath(environment[file])
        elif name in secrets and joining and environment.get(name, PLACEHOLDER_KEY) not in ("", PLACEHOLDER_KEY):
            raise ConfigError(
                f"{name} cannot be passed to a running Ray without showing it to all users: "
                f"write it to a file that every node can read, and set {file} to its path."
            )
        elif name not in secrets and environment.get(name):
            found[name] = environment[name]
    return found


if __name__ == "__main__":
    sys.exit(main())
