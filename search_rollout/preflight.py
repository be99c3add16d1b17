"""`python -m search_rollout.preflight`, the command's former name."""

import runpy

if __name__ == "__main__":
    runpy.run_module("preflight", run_name="__main__", alter_sys=True)
