#!/usr/bin/env bash
# SGLang as its package is, on a machine without a GPU, for the tests in this folder: in .venv-sglang, since it needs
# another torch than .venv. It downloads about 2.8 GB and fills 6.3 GB: the torch that SGLang runs on is a CUDA build,
# which computes on a CPU as well. A second call finds everything there; a changed version builds it again.
#
#     tests/engine/install_sglang_cpu.sh       PYTHON=python3.11 chooses the interpreter, SGLANG_VENV the folder
set -euo pipefail
cd "$(dirname "$0")/../.."
export PIP_DISABLE_PIP_VERSION_CHECK=1

python=${PYTHON:-python3}
venv=${SGLANG_VENV:-.venv-sglang}
log=$venv/install.log
lock=tests/engine/sglang_requirements.txt
need_gb=8       # a step's downloads stand beside what is installed already
limit_s=1800    # of one step: a mirror that hangs is no reason to hang with it

fail() {
    echo "SGLang was not installed: $1" >&2
    exit 1
}

version=$(cat "$lock" tests/engine/install_sglang_cpu.sh | sha256sum)
if [[ -f $venv/.installed && $(<"$venv/.installed") == "$version" ]]; then
    echo "SGLang is installed in $venv"
    exit 0
fi

[[ $(uname -sm) == "Linux x86_64" ]] || fail "its package for the CPU runs on Linux x86_64 only, and this is $(uname -sm)."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or newer is needed; set PYTHON=..."
rm -rf "$venv"
free_gb=$(($(df --output=avail -k . | tail -n 1) / 1024 / 1024))
((free_gb >= need_gb)) || fail "it needs $need_gb GB of disk, and $free_gb GB are free."

echo "installing SGLang in $venv: about 2.8 GB to download, 6.3 GB on disk, 2 minutes and the download"
"$python" -m venv "$venv" || fail "$python cannot make a virtual environment."
echo "*" >"$venv/.gitignore"

# step TITLE PIP_ARGUMENTS...
step() {
    local title=$1 began=$SECONDS reason
    shift
    if ! timeout "$limit_s" "$venv/bin/python" -m pip install --quiet --no-cache-dir --no-deps "$@" >>"$log" 2>&1; then
        reason=$(grep '^ERROR' "$log" | tail -n 1 || true)
        fail "pip could not install $title (${reason:-no answer in $limit_s s}); $log says more."
    fi
    echo "  $title: $((SECONDS - began)) s, $(du -sh "$venv" | cut -f 1) now"
}

grep -E '^(torch|triton|cuda|nvidia)' "$lock" >"$venv/torch.txt"
step "1 of 2, torch and its libraries" -r "$venv/torch.txt"
step "2 of 2, SGLang and the rest" -r "$lock"

# SGLang imports its GPU kernels on every machine, and runs none without a GPU: their names are enough.
kernels=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/sgl_kernel
mkdir -p "$kernels"
cat >"$kernels/__init__.py" <<'PY'
"""The names of SGLang's GPU kernels, for a machine without a GPU: any of them can be imported, none can be called."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def kernel(*args, **kwargs):
        raise RuntimeError(f"{name} is a GPU kernel of SGLang's, and this installation has none.")

    return kernel
PY
cp "$kernels/__init__.py" "$kernels/kvcacheio.py"

SGLANG_USE_CPU_ENGINE=1 "$venv/bin/python" -c 'import sglang.srt.entrypoints.http_server' >>"$log" 2>&1 ||
    fail "it is there, but cannot be imported: $(tail -n 1 "$log")"
echo "$version" >"$venv/.installed"
echo "SGLang is installed in $venv"
