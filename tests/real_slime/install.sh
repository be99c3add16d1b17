#!/usr/bin/env bash
# What slime's rollout side needs on a machine without a GPU: SGLang on the CPU as tests/engine installs it, Ray and
# slime's own packages, in .venv-slime (ignored by git). slime and Megatron-LM are not installed: SLIME_DIR and
# MEGATRON_DIR name their folders. A second call finds everything there.
#
#     tests/real_slime/install.sh       PYTHON=python3.11 chooses the interpreter
set -euo pipefail
cd "$(dirname "$0")/../.."

venv=.venv-slime
lock=tests/real_slime/slime_requirements.txt
version=$(cat "$lock" tests/engine/sglang_requirements.txt tests/real_slime/install.sh | sha256sum)
if [[ -f $venv/.slime-installed && $(<"$venv/.slime-installed") == "$version" ]]; then
    echo "slime's packages are installed in $venv"
    exit 0
fi

SGLANG_VENV=$venv tests/engine/install_sglang_cpu.sh
began=$SECONDS
# Without dependencies: the file is complete, and pip would take SGLang's own wishes (GPU kernels) for missing.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps -r "$lock"
echo "$version" >"$venv/.slime-installed"
echo "slime's packages are installed in $venv: $((SECONDS - began)) s, $(du -sh "$venv" | cut -f 1) now"
