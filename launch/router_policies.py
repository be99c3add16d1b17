"""Prints the values that the installed sglang-router accepts for --router-policy; nothing if it is not installed.

slime passes its command line to the router's own parser, which may reject a policy that the router supports.
"""

import argparse


def policies() -> list[str]:
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
