#!/usr/bin/env bash
# Runs retriever and training in a tmux session: window 0 has the retriever, window 1 the training, and in router modes
# window 2 the token router.
# Detaching (Ctrl-b d) keeps everything running. When one window's program ends, the others are stopped.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

usage() {
  cat <<'TEXT'
usage: run_qwen2.5_3B_with_retrieval.sh [up | status | logs | attach | down] [--dry-run | --check] [-- ARGUMENT ...]

  up          start retriever, token router (in router modes) and training, one after the other is ready
  status      show what runs and where the logs are; exit status 1 if nothing runs
  logs        the last lines of each log; `logs -f` follows them
  attach      show the session; Ctrl-b and a digit changes the window, Ctrl-b d leaves it running
  down        stop what was started here
  (no word)   up, and attach if there is a terminal
  --dry-run   print the commands, and what is missing to run them; start nothing
  --check     check the settings, files and ports and start nothing; exit status 1 if something is wrong
  ARGUMENT    further arguments of slime's train.py; they override those of the script

Settings are environment variables, here with the values of this call; docs/CONFIGURATION.md has those of the rollouts.
TEXT
  print_settings
}

main() {
  local command="" follow=0
  while (($#)); do
    case "$1" in
      up | status | logs | attach | down) [[ "$command" == --* ]] || command="$1" ;;
      --dry-run | --check) command="$1" ;;
      -f) follow=1 ;;
      -h | --help) usage && exit 0 ;;
      --) shift && break ;;
      *) die "unknown word '$1': try --help; arguments of train.py come after --." ;;
    esac
    shift
  done
  TRAIN_ARGS=("$@")
  export SEARCH_BACKEND="${SEARCH_BACKEND:-local}"
  [[ "$TMUX_SESSION" =~ ^[A-Za-z0-9_-]+$ ]] || die "TMUX_SESSION has value '$TMUX_SESSION'; it must be letters, digits, _ and -."
  if [[ "$command" == --dry-run ]]; then
    print_commands
    return
  fi
  command -v tmux >/dev/null || die "tmux is missing: install it (apt-get install tmux), or start retriever and training by hand."
  case "$command" in
    --check) check_prerequisites ;;
    up) up ;;
    "")
      up
      if [[ -t 0 && -t 1 ]]; then attach; fi
      ;;
    status) status ;;
    logs) show_logs "$follow" ;;
    attach) attach ;;
    down) down ;;
  esac
}

# --- what there is to start ---

starts_retriever() { # if there is one URL, of this machine; several URLs, or another machine's, are only waited for
  [[ "$SEARCH_BACKEND" == local && "$RETRIEVAL_SERVER_URL" != *,* ]] && is_local "$RETRIEVAL_SERVER_URL"
}

starts_router() { uses_token_router && is_local "$TOKEN_ROUTER_URL"; }

is_local() { [[ "$(url_host "$1")" =~ ^(localhost|127\..*|::1)$ ]]; }

address_of() { url_host "$1" | sed 's/^localhost$/127.0.0.1/'; } # URL of this machine: the address to listen at

set_commands() {
  local more=()
  read -ra more <<<"$RETRIEVER_ARGS"
  RETRIEVER_COMMAND=(env "HOST=$(address_of "$RETRIEVAL_SERVER_URL")" "PORT=$(url_port "$RETRIEVAL_SERVER_URL")"
    "CUDA_VISIBLE_DEVICES=$RETRIEVER_GPUS" PYTHONUNBUFFERED=1 "$HERE/local_dense_retriever/start_server.sh" "${more[@]}")
  ROUTER_COMMAND=(env "PYTHONPATH=$HERE${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" -m token_router
    --host "$(address_of "$TOKEN_ROUTER_URL")" --port "$(url_port "$TOKEN_ROUTER_URL")" --tokenizer "$HF_CHECKPOINT")
  TRAIN_COMMAND=(env PREFLIGHT=0 "$HERE/run_qwen2.5_3B.sh" -- "${TRAIN_ARGS[@]}") # preflight ran before
}

print_commands() {
  set_commands
  ! starts_retriever || quoted "${RETRIEVER_COMMAND[@]}"
  ! starts_router || quoted "${ROUTER_COMMAND[@]}"
  "$HERE/run_qwen2.5_3B.sh" --dry-run -- "${TRAIN_ARGS[@]}" || exit 1 # it has printed why
  local program
  for program in tmux curl; do
    command -v "$program" >/dev/null || say "missing: there is no command '$program': install it (apt-get install $program)."
  done
  ! starts_retriever || [[ "$(retriever_state "$RETRIEVAL_SERVER_URL")" == ready* ]] ||
    "$HERE/local_dense_retriever/start_server.sh" --check >/dev/null || true # it prints what is missing
}

up() {
  if session_exists; then
    check_session_is_ours
    say "already running: see '$0 status', '$0 attach', '$0 down'."
    return
  fi
  set_commands
  check_prerequisites
  mkdir -p "$LOG_DIR"
  STAMP="$(date +%Y%m%d_%H%M%S)"
  WINDOW_PIDS=() # of the windows that this call has opened
  clean_up_at_exit
  start_retriever
  start_router
  run_preflight "${TRAIN_ARGS[@]}"
  start_window training 1 training "${TRAIN_COMMAND[@]}"
  trap - EXIT HUP INT TERM # handed over
  say "training has started in the tmux session $TMUX_SESSION: '$0 status', 'logs', 'attach', 'down'."
}

clean_up() { # stops what this call started
  trap '' HUP INT TERM
  ((${#WINDOW_PIDS[@]})) || return 0
  say "stopping what was started"
  stop_session "${WINDOW_PIDS[@]}"
}

check_prerequisites() {
  command -v curl >/dev/null || die "curl is missing: install it (apt-get install curl)."
  "$HERE/run_qwen2.5_3B.sh" --check -- "${TRAIN_ARGS[@]}" || exit 1 # it has printed why
  REUSED=0
  if starts_retriever; then
    case "$(retriever_state "$RETRIEVAL_SERVER_URL")" in
      "not listening") "$HERE/local_dense_retriever/start_server.sh" --check || exit 1 ;;
      ready* | loading*) REUSED=1 ;;
      *) die "port $(url_port "$RETRIEVAL_SERVER_URL") is taken by $(port_owner "$RETRIEVAL_SERVER_URL"), which is no retriever: stop it, or give RETRIEVAL_SERVER_URL another port." ;;
    esac
  fi
  if starts_router && [[ "$(router_state "$TOKEN_ROUTER_URL")" != "not listening" ]]; then
    die "port $(url_port "$TOKEN_ROUTER_URL") is taken by $(port_owner "$TOKEN_ROUTER_URL"): stop it, or give TOKEN_ROUTER_URL another port."
  fi
}

start_retriever() {
  [[ "$SEARCH_BACKEND" == local ]] || return 0
  local url
  if starts_retriever && ((!REUSED)); then
    start_window retriever 0 retrieval_server "${RETRIEVER_COMMAND[@]}"
  else
    say "starting no retriever: $RETRIEVAL_SERVER_URL is used as it is."
  fi
  for url in ${RETRIEVAL_SERVER_URL//,/ }; do
    wait_until_ready "the retriever $url" retriever_state "$url" retrieval_server
  done
}

start_router() {
  uses_token_router || return 0
  ! starts_router || start_window token-router 2 token_router "${ROUTER_COMMAND[@]}"
  wait_until_ready "the token router $TOKEN_ROUTER_URL" router_state "$TOKEN_ROUTER_URL" token_router
}

start_window() { # NAME INDEX LOG COMMAND …
  local name="$1" index="$2" log="$LOG_DIR/$3_$STAMP.log" environment program pid now here="${HERE/%;/\\;}" cwd="${PWD/%;/\\;}"
  shift 3
  # A running tmux server keeps its own environment: ours travels in a file that only we may read, removed once read.
  environment="$(mktemp)"
  env -0 >"$environment"
  program=("$(command -v "$PYTHON")" -E "$HERE/launch/contain.py" --name "$name" --log "$log"
    --environment "$environment" --end-session "$TMUX_SESSION" --grace 90 "$@")
  program=("${program[@]/%;/\\;}") # a ; at an argument's end would end tmux's own command
  local new=(new-session -d -s "$TMUX_SESSION" -x 200 -y 50) options=(";" set-option -t "=$TMUX_SESSION:" @search_r1 "$here"
    ";" set-option -t "=$TMUX_SESSION:" destroy-unattached off)
  ((!${#WINDOW_PIDS[@]})) || new=(new-window -t "=$TMUX_SESSION:$index") options=()
  pid="$(tmux "${new[@]}" -P -F '#{pane_pid}' -n "$name" -c "$cwd" "${program[@]}" "${options[@]}")" ||
    { rm -f "$environment" && die "tmux could not open a window in the session $TMUX_SESSION (see above and $LOG_DIR)."; }
  WINDOW_PIDS+=("$pid")
  ((${#WINDOW_PIDS[@]} == 1)) || return 0
  now="$(tmux display-message -p -t "=$TMUX_SESSION:" '#{window_index}' 2>/dev/null)" || return 0 # it ended at once
  [[ "$now" == "$index" ]] || tmux move-window -s "=$TMUX_SESSION:$now" -t "=$TMUX_SESSION:$index" # base-index is set
}

wait_until_ready() { # WHAT STATE_FUNCTION URL LOG
  local what="$1" log="$LOG_DIR/$4_$STAMP.log" state told="" began=$SECONDS passed tell_at=0
  while true; do
    state="$("$2" "$3")"
    passed=$((SECONDS - began))
    case "$state" in
      ready*) say "$what is $state (after $passed s)" && return ;;
      "answers 404") say "$what answers, but cannot say whether it is ready" && return ;;
    esac
    ((!${#WINDOW_PIDS[@]})) || session_exists || die "$what ended before it was ready.$(tail_of "$log")"
    ((passed < START_TIMEOUT_S)) ||
      die "$what is not ready after $passed s ($state); START_TIMEOUT_S sets how long to wait.$(tail_of "$log")"
    if [[ "${state%% *}" != "$told" ]] || ((passed >= tell_at)); then
      say "waiting for $what: $state ($passed of $START_TIMEOUT_S s)"
      told="${state%% *}"
      tell_at=$((passed + 5))
    fi
    sleep 0.5
  done
}

# --- states of servers ---

retriever_state() { state_of "$1" /ready '"status"[[:space:]]*:[[:space:]]*"ready"'; }

router_state() { state_of "$1" /list_workers '"urls"'; }

state_of() { # URL PATH READY: ready if the answer matches that, loading …, not listening, or how something else answers
  local reply status code=0 loading='"loading"[[:space:]]*:[[:space:]]*"([^"]*)'
  reply="$(curl --silent --noproxy '*' --max-time 5 --write-out '\n%{http_code}' "${1%/}$2")" || code=$?
  status="${reply##*$'\n'}"
  case "$code $status" in
    "0 200") if [[ "$reply" =~ $3 ]]; then echo ready; else echo "answers 200"; fi ;;
    "0 503") if [[ "$reply" =~ $loading ]]; then echo "loading ${BASH_REMATCH[1]}"; else echo "answers 503"; fi ;;
    "0 "*) echo "answers $status" ;;
    "6 "*) echo "unknown host" ;;
    "7 "*) echo "not listening" ;;
    "28 "*) echo "silent" ;;
    *) echo "not answering HTTP" ;;
  esac
}

port_owner() { # URL of this machine: the process that listens there
  local port pid=""
  port="$(url_port "$1")"
  if command -v ss >/dev/null; then
    pid="$(ss -Hltnp "sport = :$port" | sed -nE 's/.*pid=([0-9]+).*/\1/p' | head -n 1)"
  elif command -v lsof >/dev/null; then
    pid="$(lsof -nP -t -iTCP:"$port" -sTCP:LISTEN | head -n 1)" || true
  fi
  if [[ -n "$pid" ]]; then
    echo "process $pid ($(ps -o args= -p "$pid" | cut -c 1-120))"
  else
    echo "another user's process"
  fi
}

# --- the session ---

session_exists() { tmux has-session -t "=$TMUX_SESSION" 2>/dev/null; }

check_session_is_ours() {
  local owner
  owner="$(tmux show-options -qv -t "=$TMUX_SESSION:" @search_r1)"
  [[ "$owner" == "$HERE" ]] ||
    die "the tmux session $TMUX_SESSION is not ours (started in ${owner:-some other way}): set TMUX_SESSION to another name."
}

down() {
  session_exists || { say "nothing runs." && return; }
  check_session_is_ours
  local pids
  mapfile -t pids < <(tmux list-panes -s -t "=$TMUX_SESSION:" -F '#{pane_pid}')
  stop_session "${pids[@]}"
  say "stopped."
}

stop_session() { # PID …: its programs, which stop what they started
  local pid
  tmux kill-session -t "=$TMUX_SESSION" 2>/dev/null || true # a window that has ended may have done so already
  for pid in "$@"; do
    timeout 150 tail --pid="$pid" -f -s 0.1 /dev/null || say "process $pid is still running."
  done
}

attach() {
  session_exists || die "nothing runs: see '$0 status'."
  check_session_is_ours
  if [[ -n "${TMUX:-}" ]]; then
    tmux switch-client -t "=$TMUX_SESSION"
    return
  fi
  tmux attach-session -t "=$TMUX_SESSION"
  if session_exists; then say "everything keeps running; '$0 down' stops it."; else status || true; fi
}

status() {
  local url log
  if session_exists; then
    check_session_is_ours
    echo "tmux session $TMUX_SESSION: running"
    tmux list-windows -t "=$TMUX_SESSION:" -F '  window #{window_index}: #{window_name}'
  else
    echo "tmux session $TMUX_SESSION: not running"
  fi
  if [[ "$SEARCH_BACKEND" == local ]]; then
    for url in ${RETRIEVAL_SERVER_URL//,/ }; do echo "retriever $url: $(retriever_state "$url")"; done
  fi
  ! uses_token_router || echo "token router $TOKEN_ROUTER_URL: $(router_state "$TOKEN_ROUTER_URL")"
  while IFS= read -r log; do
    echo "$log: $(tail -n 1 "$log" | cut -c 1-200)"
  done < <(newest_logs)
  session_exists
}

newest_logs() { # one per kind
  local kind logs
  for kind in retrieval_server token_router training; do
    logs=("$LOG_DIR/$kind"_*.log)
    [[ ! -f "${logs[-1]}" ]] || printf '%s\n' "${logs[-1]}" # the names end in the time
  done
}

show_logs() { # follow (0 or 1)
  local logs
  mapfile -t logs < <(newest_logs)
  ((${#logs[@]})) || die "there are no logs in $LOG_DIR yet."
  if (($1)); then exec tail -n 30 -F "${logs[@]}"; else tail -n 30 "${logs[@]}"; fi
}

tail_of() { # LOG: its end, for an error message
  if [[ -f "$1" ]]; then printf ' %s ends with:\n%s' "$1" "$(tail -n 20 "$1")"; fi
}

# shellcheck source=launch/common.sh
source "$HERE/launch/common.sh"
main "$@"
