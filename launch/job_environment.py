"""What a Ray job must be told about the settings: its runtime environment, as JSON.

    python -m launch.job_environment [--joining] NAME=VALUE …

Every setting that stands in our environment, and the variables given. The JSON becomes part of a command line, which
all users of a machine can read: keys of services are left out. A Ray that the launch script starts inherits them; a
cluster that runs already (`--joining`) has to be given the path of a file that holds the key, on every node.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence

from search_rollout.config import PLACEHOLDER_KEY, secret_keys, variables


class SecretError(Exception):
    """A key cannot reach the job; the message says which, and the remedy."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--joining", action="store_true", help="the job goes to a cluster that runs already")
    parser.add_argument("variables", nargs="*", metavar="NAME=VALUE", help="further variables of the job")
    args = parser.parse_args(argv)
    further = dict(entry.split("=", 1) for entry in args.variables)
    try:
        print(json.dumps({"env_vars": {**job_variables(os.environ, joining=args.joining), **further}}))
    except SecretError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def job_variables(environment: Mapping[str, str], *, joining: bool) -> dict[str, str]:
    """The settings of `environment` that a job needs to be told. Raises SecretError."""
    told = {}
    secrets = {variables()[key] for key in secret_keys()}
    for name in variables().values():
        file = f"{name}_FILE"
        if name in secrets and environment.get(file):
            told[file] = os.path.abspath(environment[file])
        elif name in secrets and joining and environment.get(name, PLACEHOLDER_KEY) not in ("", PLACEHOLDER_KEY):
            raise SecretError(
                f"{name} cannot be handed to a Ray that runs already without showing it to everybody: "
                f"write it to a file that every node can read, and set {file} to its path instead."
            )
        elif name not in secrets and environment.get(name):
            told[name] = environment[name]
    return told


if __name__ == "__main__":
    sys.exit(main())
