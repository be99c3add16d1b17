"""Prints the policies that the installed sglang-router accepts as --router-policy; nothing if it is not installed.

slime hands its command line to the router's own parser, which may refuse a policy that the router has.
"""

import argparse


def policies() -> list[str]:
    """Those of the router's parser."""
    try:
        from sglang_router.launch_router import RouterArgs
    except ImportError:
        return []
    parser = argparse.ArgumentParser()
    RouterArgs.add_cli_args(parser)
    found = (action.choices or () for action in parser._actions if "--policy" in action.option_strings)
    return [str(policy) for choices in found for policy in choices]


if __name__ == "__main__":
    print(*policies())
