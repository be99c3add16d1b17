# shellcheck shell=bash
# Shared by both launch scripts, which source it; HERE is the repository's folder.

die() {
  say "error: $*"
  exit 1
}

say() { # to stderr, even if nobody reads it any more
  printf '%s\n' "$*" >&2 || true
}

is_on() { [[ "${1,,}" == 1 || "${1,,}" == true || "${1,,}" == yes ]]; }

check_whole_numbers() { # NAME …: variables
  local name
  for name in "$@"; do
    [[ "${!name}" =~ ^(0|[1-9][0-9]*)$ ]] || die "$name has value '${!name}'; it must be a whole number."
  done
}

# --- defaults that depend on the machine or the mode ---

find_slime() {
  local above
  above="$(dirname "$(dirname "$HERE")")" # this folder may be slime's examples/search-r1
  if [[ -f "$above/train.py" ]]; then echo "$above"; else echo /root/slime; fi
}

count_gpus() { # in CUDA_VISIBLE_DEVICES if it is set, else all
  if [[ -n "${CUDA_VISIBLE_DEVICES+set}" ]]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c '[^[:space:]]' || true
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi --list-gpus | grep -c '^GPU ' || true
  else
    echo 0
  fi
}

default_temperature() {
  if [[ "${LLM_API_MODE:-}" == chat ]]; then echo 1.0; else echo 0.8; fi
}

model_name() { # qwen2.5-3b-instruct of /root/Qwen2.5-3B-Instruct/
  local name="${HF_CHECKPOINT%/}"
  name="${name##*/}"
  echo "${name,,}"
}

tokens_of_a_micro_batch() { echo $((MAX_TOKENS_PER_GPU * CONTEXT_PARALLEL)); }

bound_trajectories() { # to what a micro batch holds, if the table allows more; the environment's value is only checked
  local fits table
  [[ -z "${SEARCH_R1_MAX_CONTEXT_LENGTH:-}" ]] || return 0
  fits="$(tokens_of_a_micro_batch)"
  table="$(sed -nE '/^SEARCH_R1_CONFIGS/,/^}/s/^ *"max_context_length": *([0-9]+),.*/\1/p' "$HERE/generate_with_search.py")"
  export SEARCH_R1_MAX_CONTEXT_LENGTH="${table:-$fits}"
  ((fits < SEARCH_R1_MAX_CONTEXT_LENGTH)) || return 0
  say "note: max_context_length is $fits, which fits MAX_TOKENS_PER_GPU x CONTEXT_PARALLEL, not the $table of SEARCH_R1_CONFIGS."
  SEARCH_R1_MAX_CONTEXT_LENGTH="$fits"
}

print_settings() { # for --help: the lines of launch/settings.sh, with the values of this call
  # shellcheck disable=SC2016 # the lines begin like this
  local line setting='^: "\$\{([A-Z0-9_]+):=.*# (.*)$'
  while IFS= read -r line; do
    if [[ "$line" =~ ^'# --- '(.*)' ---'$ ]]; then
      printf '\n%s:\n' "${BASH_REMATCH[1]}"
    elif [[ "$line" =~ $setting ]]; then
      printf '  %-27s %s [%s]\n' "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}" "${!BASH_REMATCH[1]}"
    fi
  done <"$HERE/launch/settings.sh"
}

quoted() { # a command line to copy, one line per flag
  local argument line=""
  for argument in "$@"; do
    [[ "$argument" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || argument="${argument@Q}"
    if [[ -z "$line" ]]; then
      line="$argument"
    elif [[ "$argument" == --* ]]; then
      line+=$' \\\n  '"$argument"
    else
      line+=" $argument"
    fi
  done
  printf '%s\n' "$line"
}

ours() { # runs a module of this repository
  PYTHONPATH="$HERE${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" -m "$@"
}

uses_token_router() { [[ "${TOKEN_TRACKING_MODE:-}" == router_* ]]; }

URL='^([a-z]+://)?(\[([^]]*)\]|[^:/]*)(:([^/]*))?' # http://HOST:PORT/… or http://[HOST]:PORT/…

url_host() { [[ "$1" =~ $URL ]] && echo "${BASH_REMATCH[3]:-${BASH_REMATCH[2]}}"; }

url_port() {
  local default=80
  [[ "$1" != https://* ]] || default=443
  [[ "$1" =~ $URL ]] && echo "${BASH_REMATCH[5]:-$default}"
}

clean_up_at_exit() { # calls clean_up, however the script ends
  trap clean_up EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
}

run_preflight() { # gets the further arguments of train.py; prints what is wrong
  is_on "$PREFLIGHT" || return 0
  ours preflight -- "$@" || die "preflight found mistakes: correct them, or skip it with PREFLIGHT=0."
}

# shellcheck source=launch/settings.sh
source "$HERE/launch/settings.sh"
