#!/usr/bin/env bash
# Trains a model to search, Qwen2.5-3B unless set otherwise: slime's GRPO with Megatron and SGLang, as one Ray job.
# It starts Ray, submits the job, shows its log until it ends, and stops the Ray that it started. With RAY_ADDRESS it
# joins a cluster and leaves it running. Ctrl-C ends the job. Nothing that was running before is touched.
# Exit status: 0 if the job succeeded.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

usage() {
  cat <<'TEXT'
usage: run_qwen2.5_3B.sh [--dry-run | --check] [-- ARGUMENT ...]

  --dry-run   print the commands, and what is missing to run them; start nothing
  --check     check the settings and start nothing; exit status 1 if one is wrong or something is missing
  ARGUMENT    further arguments of slime's train.py; they override those of this script

Settings are environment variables, here with the values of this call; docs/CONFIGURATION.md has those of the rollouts.
TEXT
  print_settings
}

main() {
  local what=train
  while (($#)); do
    case "$1" in
      --dry-run | --check) what="$1" ;;
      -h | --help) usage && exit 0 ;;
      --) shift && break ;;
      *) die "unknown option '$1': try --help; arguments of train.py come after --." ;;
    esac
    shift
  done
  local missing=() train_args=() runtime_env
  find_what_is_missing
  [[ "$what" == --dry-run ]] || report_missing error
  check_settings "$@"
  bound_trajectories
  check_trajectories
  keep_one_update_a_step "$@"
  collect_train_args "$@"
  avoid_proxies
  runtime_env="$(make_runtime_env)" || exit 1 # it has printed why
  [[ "$what" != --check ]] || exit 0
  JOB_ADDRESS="${RAY_ADDRESS:-http://127.0.0.1:$RAY_DASHBOARD_PORT}"
  JOB_ID="search-r1-$(date +%Y%m%d-%H%M%S)-$$"
  local submit=(ray job submit --no-wait --address "$JOB_ADDRESS" --submission-id "$JOB_ID" --runtime-env-json "$runtime_env"
    -- "$PYTHON" "$SLIME_DIR/train.py" "${train_args[@]}")
  local start=(ray start --head --node-ip-address "$MASTER_ADDR" --port "$RAY_PORT" --num-gpus "$NUM_GPUS"
    --dashboard-host 127.0.0.1 --dashboard-port "$RAY_DASHBOARD_PORT" --disable-usage-stats)
  if [[ "$what" == --dry-run ]]; then
    [[ -n "$RAY_ADDRESS" ]] || quoted "${start[@]}"
    quoted "${submit[@]}"
    report_missing missing || true
    exit 0
  fi
  run_preflight "$@"
  use_ray_token
  RAY_PID=
  JOB_RUNS=0
  clean_up_at_exit
  [[ -n "$RAY_ADDRESS" ]] || start_ray "${start[@]}"
  JOB_RUNS=1
  submit_job "${submit[@]}"
  follow_job
}

# --- the arguments of train.py ---

find_what_is_missing() { # fills missing
  command -v "$PYTHON" >/dev/null || missing+=("there is no Python '$PYTHON': set PYTHON to slime's.")
  command -v ray >/dev/null || missing+=("there is no command 'ray': use slime's image, or pip install 'ray[default]'.")
  [[ -f "$SLIME_DIR/train.py" ]] || missing+=("there is no slime in '$SLIME_DIR': set SLIME_DIR to its folder.")
  [[ -f "$MODEL_ARGS_FILE" ]] ||
    missing+=("there is no file '$MODEL_ARGS_FILE': set MODEL_ARGS_FILE to one of slime's scripts/models.")
  ((NUM_GPUS > 0)) || missing+=("no GPU is visible: set CUDA_VISIBLE_DEVICES, or NUM_GPUS to those of each node.")
}

report_missing() { # WORD: one line for each; exits unless there is none, or the word is missing
  ((${#missing[@]})) || return 0
  printf "$1: %s\n" "${missing[@]}" >&2
  [[ "$1" == missing ]] || exit 1
}

check_settings() { # ARGUMENT …
  ((TENSOR_PARALLEL * CONTEXT_PARALLEL > 0 && NUM_GPUS % (TENSOR_PARALLEL * CONTEXT_PARALLEL) == 0)) ||
    die "NUM_GPUS=$NUM_GPUS cannot be shared by TENSOR_PARALLEL=$TENSOR_PARALLEL x CONTEXT_PARALLEL=$CONTEXT_PARALLEL: set them so that it can."
  check_whole_numbers ${OVER_SAMPLING_BATCH_SIZE:+OVER_SAMPLING_BATCH_SIZE}
  ((${OVER_SAMPLING_BATCH_SIZE:-$ROLLOUT_BATCH_SIZE} >= ROLLOUT_BATCH_SIZE)) ||
    die "OVER_SAMPLING_BATCH_SIZE=$OVER_SAMPLING_BATCH_SIZE is less than ROLLOUT_BATCH_SIZE=$ROLLOUT_BATCH_SIZE: raise it, or unset it."
  case "$CORRECTION" in
    none) ;;
    tis | mis)
      records_log_probs ||
        die "CORRECTION=$CORRECTION needs the rollouts' log-probabilities: set TRACK_LOG_PROBS=true and LOSS_MASK_MODE=strict, in the environment only."
      ;;
    *) die "CORRECTION has value '$CORRECTION'; it must be none, tis or mis." ;;
  esac
  [[ -z "$CUSTOM_CONFIG_PATH" || -f "$CUSTOM_CONFIG_PATH" ]] || die "there is no file '$CUSTOM_CONFIG_PATH': correct CUSTOM_CONFIG_PATH."
  ! is_on "$PREFLIGHT" || check_flags "$@"
}

check_flags() { # ARGUMENT …: slime ignores a flag that no parser knows
  local argument name
  [[ -d "$SLIME_DIR/slime" && -d "$MEGATRON_DIR/megatron" ]] || return 0
  for argument in "$@"; do
    name="${argument%%=*}"
    [[ "$name" == --?* && "$name" != --sglang-* ]] || continue # SGLang's own are not looked up
    name="${name#--}"
    name="${name#no-}" # a flag stands in the source as it is, or as the field that it sets
    grep -rqE --include='*.py' -e "--(no-)?$name\b" -e "\b${name//-/_}\b" "$SLIME_DIR/slime" "$MEGATRON_DIR/megatron" ||
      die "neither slime nor Megatron-LM knows ${argument%%=*}, and slime would ignore it: correct it, or skip this check with PREFLIGHT=0."
  done
}

value_of() { # FLAG DEFAULT ARGUMENT …: what the arguments say last
  local flag="$1" value="$2" argument before=
  for argument in "${@:3}"; do
    [[ "$before" != "$flag" ]] || value="$argument"
    [[ "$argument" != "$flag="* ]] || value="${argument#*=}"
    before="$argument"
  done
  echo "$value"
}

keep_one_update_a_step() { # ARGUMENT …: if that is what the settings say, and the arguments change the size of a step
  local prompts samples
  prompts="$(value_of --rollout-batch-size "$ROLLOUT_BATCH_SIZE" "$@")"
  samples="$(value_of --n-samples-per-prompt "$N_SAMPLES_PER_PROMPT" "$@")"
  [[ "$prompts" =~ ^[1-9][0-9]*$ && "$samples" =~ ^[1-9][0-9]*$ ]] || return 0 # slime says what is wrong with it
  ((GLOBAL_BATCH_SIZE == ROLLOUT_BATCH_SIZE * N_SAMPLES_PER_PROMPT && GLOBAL_BATCH_SIZE != prompts * samples)) || return 0
  GLOBAL_BATCH_SIZE=$((prompts * samples))
  say "note: the global batch size is $GLOBAL_BATCH_SIZE, for one update per step of $prompts x $samples samples."
}

check_trajectories() { # a trajectory that fits no micro batch would run out of GPU memory, hours into the training
  check_whole_numbers SEARCH_R1_MAX_CONTEXT_LENGTH
  ((SEARCH_R1_MAX_CONTEXT_LENGTH <= $(tokens_of_a_micro_batch))) ||
    die "SEARCH_R1_MAX_CONTEXT_LENGTH=$SEARCH_R1_MAX_CONTEXT_LENGTH does not fit MAX_TOKENS_PER_GPU=$MAX_TOKENS_PER_GPU x CONTEXT_PARALLEL=$CONTEXT_PARALLEL: raise these, or lower it."
}

collect_train_args() { # fills train_args
  local MODEL_ARGS=("<MODEL_ARGS of $MODEL_ARGS_FILE>") # placeholders of a dry run
  ((NUM_GPUS > 0)) || NUM_GPUS="<NUM_GPUS>"
  # shellcheck source=/dev/null
  [[ ! -f "$MODEL_ARGS_FILE" ]] || source "$MODEL_ARGS_FILE"
  train_args=(
    --actor-num-nodes "$NUM_NODES"
    --actor-num-gpus-per-node "$NUM_GPUS"
    --num-gpus-per-node "$NUM_GPUS"
    --colocate
    "${MODEL_ARGS[@]}"
    --custom-generate-function-path generate_with_search.generate
    --custom-rm-path generate_with_search.reward_func
    --custom-reward-post-process-path generate_with_search.reward_post_process # leaves discarded samples out
  )
  [[ -z "$CUSTOM_CONFIG_PATH" ]] || train_args+=(--custom-config-path "$CUSTOM_CONFIG_PATH")
  add_checkpoint_args
  add_rollout_args
  add_group_args
  add_evaluation_args
  add_training_args
  add_mismatch_args
  add_logging_args
  train_args+=("$@")
}

add_checkpoint_args() {
  train_args+=(--hf-checkpoint "$HF_CHECKPOINT" --ref-load "$REF_LOAD")
  local load="${LOAD_DIR:-$SAVE_DIR}" # slime starts from --ref-load where there is no checkpoint yet
  [[ -z "$load" ]] || train_args+=(--load "$load")
  if [[ -n "$SAVE_DIR" ]]; then
    train_args+=(--save "$SAVE_DIR" --save-interval "$SAVE_INTERVAL")
  else
    say "note: no checkpoint will be saved; set SAVE_DIR to keep what is trained."
  fi
}

add_rollout_args() {
  train_args+=(--prompt-data "$PROMPT_DATA" --input-key prompt --label-key reward_model --rollout-shuffle)
  if [[ "${LLM_API_MODE:-}" == chat ]]; then
    train_args+=(--tool-key tools) # prompts stay messages: the plugin renders them, with their tools
  elif is_on "$APPLY_CHAT_TEMPLATE"; then
    train_args+=(--apply-chat-template)
  fi
  train_args+=(
    --num-rollout "$NUM_ROLLOUT"
    --rollout-batch-size "$ROLLOUT_BATCH_SIZE"
    --n-samples-per-prompt "$N_SAMPLES_PER_PROMPT"
    --rollout-max-response-len "$ROLLOUT_MAX_RESPONSE_LEN"
    --rollout-temperature "$ROLLOUT_TEMPERATURE"
    --rollout-num-gpus-per-engine "$ROLLOUT_GPUS_PER_ENGINE"
    --sglang-mem-fraction-static "$SGLANG_MEM_FRACTION_STATIC"
  )
  if uses_token_router; then
    train_args+=(--sglang-router-ip "$(url_host "$TOKEN_ROUTER_URL")" --sglang-router-port "$(url_port "$TOKEN_ROUTER_URL")")
  else
    add_router_policy
  fi
}

add_evaluation_args() {
  ((EVAL_INTERVAL > 0)) || return 0
  local sets=(--eval-config "$EVAL_CONFIG") of_a_set=slime/utils/eval_config.py
  if [[ -n "$EVAL_DATA" ]]; then
    sets=(--eval-prompt-data "$EVAL_NAME" "$EVAL_DATA")
  elif ! slime_has custom_generate_function_path $of_a_set; then
    say "note: no evaluation: this slime knows no rollout function for one evaluation set; set EVAL_DATA to a single file."
    return 0
  elif ! slime_has custom_rm_path $of_a_set; then
    say "note: this slime's eval/SET is the training reward; exact match is eval/SET/search_r1/exact_match."
  fi
  train_args+=(--eval-interval "$EVAL_INTERVAL" "${sets[@]}"
    --eval-temperature "$EVAL_TEMPERATURE" --n-samples-per-eval-prompt "$N_SAMPLES_PER_EVAL_PROMPT")
}

add_router_policy() { # where this slime sends session keys, and its router takes the policy
  local policies
  if [[ -d "$SLIME_DIR" ]] && ! grep --recursive --quiet --fixed-strings X-SMG-Routing-Key "$SLIME_DIR/slime"; then
    say "note: this slime sends no session keys: --router-policy is left out."
    return 0
  fi
  policies="$(ours launch.router_policies 2>/dev/null)" || true # without Python, or without a router: it cannot be asked
  if [[ -n "$policies" && " $policies " != *" $ROUTER_POLICY "* ]]; then
    say "note: the installed sglang-router has no policy $ROUTER_POLICY ($policies): --router-policy is left out."
    return 0
  fi
  train_args+=(--router-policy "$ROUTER_POLICY")
}

add_group_args() { # which groups a step trains (GROUP_FILTER), and how many it generates
  [[ -z "$OVER_SAMPLING_BATCH_SIZE" ]] || train_args+=(--over-sampling-batch-size "$OVER_SAMPLING_BATCH_SIZE")
  if is_on "$PARTIAL_ROLLOUT"; then
    train_args+=(--partial-rollout)
  elif [[ -n "$OVER_SAMPLING_BATCH_SIZE" || "${GROUP_FILTER:-off}" != off ]]; then
    say "note: what is generated beyond a step's $ROLLOUT_BATCH_SIZE prompts is thrown away; PARTIAL_ROLLOUT=1 resumes it in the next step."
  fi
  add_if_known --dynamic-sampling-filter-path generate_with_search.keep_group
  add_if_known --rollout-all-samples-process-path generate_with_search.process_all_groups
}

add_training_args() {
  train_args+=(
    --advantage-estimator grpo
    --kl-loss-coef "$KL_LOSS_COEF"
    --kl-loss-type low_var_kl
    --entropy-coef 0.00
    --eps-clip "$EPS_CLIP"
    --eps-clip-high "$EPS_CLIP_HIGH"
    --global-batch-size "$GLOBAL_BATCH_SIZE"
    --balance-data
    --optimizer adam
    --lr "$LEARNING_RATE"
    --lr-decay-style constant
    --weight-decay 0.01
    --adam-beta1 0.9
    --adam-beta2 0.98
    --tensor-model-parallel-size "$TENSOR_PARALLEL"
    --pipeline-model-parallel-size 1
    --context-parallel-size "$CONTEXT_PARALLEL"
    --use-dynamic-batch-size
    --max-tokens-per-gpu "$MAX_TOKENS_PER_GPU"
    --recompute-granularity full
    --recompute-method uniform
    --recompute-num-layers 1
    --attention-dropout 0.0
    --hidden-dropout 0.0
    --accumulate-allreduce-grads-in-fp32
    --attention-softmax-in-fp32
    --attention-backend flash
  )
  ! is_on "$USE_KL_LOSS" || train_args+=(--use-kl-loss)
  ((TENSOR_PARALLEL == 1)) || train_args+=(--sequence-parallel)
}

add_mismatch_args() { # figures of engine against trainer, and their correction: docs/MISMATCH.md
  local losses=slime/backends/megatron_utils/loss.py
  case "$CORRECTION" in
    none)
      is_on "$MISMATCH_FIGURES" || return 0
      if ! records_log_probs; then
        say "note: no mismatch figures: they need TRACK_LOG_PROBS=true and LOSS_MASK_MODE=strict, in the environment only."
      elif slime_has '^def vanilla_tis_function' $losses; then
        train_args+=(--get-mismatch-metrics --custom-tis-function-path generate_with_search.mismatch_figures)
      else
        say "note: no mismatch figures: this slime has no function that they could be taken from."
      fi
      ;;
    tis) train_args+=(--use-tis) ;;
    mis)
      if slime_has '^def icepop_function' $losses; then
        train_args+=(--use-tis --tis-clip-low 0.5 --tis-clip 2.0
          --custom-tis-function-path slime.backends.megatron_utils.loss.icepop_function)
      else
        say "note: CORRECTION=mis is left out: this slime has no icepop_function."
      fi
      ;;
  esac
}

records_log_probs() { # as far as the environment says; a YAML that sets one of the two may say otherwise
  is_on "${TRACK_LOG_PROBS:-true}" && [[ "${LOSS_MASK_MODE:-}" != simple ]] || return 1
  [[ ! -f "$CUSTOM_CONFIG_PATH" ]] || ! grep -qE '^(track_log_probs|loss_mask_mode) *:' "$CUSTOM_CONFIG_PATH"
}

add_logging_args() {
  if slime_knows --custom-rollout-log-function-path; then
    train_args+=(--custom-rollout-log-function-path generate_with_search.log_rollout)
    train_args+=(--custom-eval-rollout-log-function-path generate_with_search.log_eval_rollout)
  else
    train_args+=(--rollout-function-path generate_with_search.generate_rollout)
  fi
  add_if_known --log-multi-turn # turns per sample, and lengths with and without observations
  add_if_known --log-passrate   # pass@k of exact match
  ! is_on "$USE_WANDB" || train_args+=(--use-wandb --wandb-project "$RUN_PROJECT" --wandb-group "$RUN_NAME")
  ! is_on "$USE_TENSORBOARD" || train_args+=(--use-tensorboard --tb-project-name "$RUN_PROJECT" --tb-experiment-name "$RUN_NAME")
}

add_if_known() { # FLAG [VALUE]
  if slime_knows "$1"; then train_args+=("$@"); else say "note: this slime has no $1: it is left out."; fi
}

slime_knows() { slime_has "\"$1\"" slime/utils/arguments.py; } # FLAG, which an older slime would refuse

slime_has() { # PATTERN FILE; a slime that is not here has all of it
  [[ ! -d "$SLIME_DIR" ]] || grep --quiet --no-messages --extended-regexp -e "$1" "$SLIME_DIR/$2"
}

make_runtime_env() { # JSON
  command -v "$PYTHON" >/dev/null || { echo "<runtime environment>" && return; }
  local joining=()
  [[ -z "$RAY_ADDRESS" ]] || joining=(--joining)
  ours launch.job_environment "${joining[@]}" \
    "PYTHONPATH=$MEGATRON_DIR:$HERE:$SLIME_DIR${PYTHONPATH:+:$PYTHONPATH}" \
    PYTHONUNBUFFERED=1 \
    CUDA_DEVICE_MAX_CONNECTIONS=1 \
    "TENSORBOARD_DIR=$TENSORBOARD_DIR/$RUN_PROJECT/$RUN_NAME/$(date +%Y%m%d-%H%M%S)" \
    "no_proxy=$no_proxy" "NO_PROXY=$no_proxy"
}

avoid_proxies() { # for this node: Ray's dashboard, and at the node's own addresses slime's router and engines
  local addresses others="${no_proxy:-${NO_PROXY:-}}"
  read -ra addresses <<<"$(own_addresses) $others"
  no_proxy="$(IFS=, && echo "${addresses[*]}")"
  export no_proxy NO_PROXY="$no_proxy" # some programs read one of them, some the other
}

own_addresses() { echo "127.0.0.1 localhost $MASTER_ADDR $(hostname) $(hostname -I 2>/dev/null || true)"; }

# --- the job ---

interruptible() { # COMMAND …: a slow one; bash handles signals only between commands, or in wait
  "$@" &
  wait $!
}

clean_up() {
  trap '' HUP INT TERM
  if ((JOB_RUNS)); then
    say "stopping the job $JOB_ID"
    timeout 20 ray job stop --address "$JOB_ADDRESS" "$JOB_ID" >/dev/null 2>&1 || # a Ray with a job takes 30 s to stop
      say "Ray did not confirm that the job has stopped."
  fi
  [[ -z "$RAY_PID" ]] || say "stopping Ray"
  local running
  running="$(jobs -pr)" # Ray, and the command that was waited for
  # shellcheck disable=SC2086 # one word each
  [[ -z "$running" ]] || kill -TERM $running 2>/dev/null || true
  wait || true
  [[ -z "$RAY_PID" ]] || forget_cluster
}

forget_cluster() { # Ray's note of it, for which the next plain ray.init() would wait in vain
  local note="${RAY_TMPDIR:-${TMPDIR:-/tmp}}/ray/ray_current_cluster" noted address
  noted="$(cat "$note" 2>/dev/null)" || return 0
  for address in $(own_addresses); do # Ray writes the node's address there, whatever MASTER_ADDR calls it
    [[ "$noted" != "$address:$RAY_PORT" ]] || rm -f "$note"
  done
}

use_ray_token() { # once Ray has written one, it asks for it
  [[ -z "${RAY_AUTH_TOKEN:-}" && ! -f "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" ]] ||
    export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
}

start_ray() { # COMMAND …
  local how="join it by RAY_ADDRESS=http://HOST:$RAY_DASHBOARD_PORT, or give RAY_PORT and RAY_DASHBOARD_PORT other numbers"
  ! dashboard_answers || die "a Ray runs already at $JOB_ADDRESS: $how."
  unset RAY_ADDRESS
  # `ray stop` would stop every Ray of this machine: this one stays our child instead, with all that it starts.
  "$PYTHON" "$HERE/launch/contain.py" --grace 45 "$@" --block &
  RAY_PID=$!
  local tries
  for ((tries = 0; tries < 600; tries++)); do # two minutes and more
    kill -0 "$RAY_PID" 2>/dev/null || die "Ray did not start (see above). If another one runs: $how."
    ! dashboard_answers || return 0
    sleep 0.2
  done
  die "Ray's dashboard did not answer at $JOB_ADDRESS."
}

dashboard_answers() { # 401: it wants a token, which we do not show to whoever listens there
  local status
  status="$(curl --silent --max-time 2 --noproxy '*' --output /dev/null --write-out '%{http_code}' "$JOB_ADDRESS/api/version")"
  [[ "$status" == 200 || "$status" == 401 ]]
}

submit_job() { # COMMAND …: Ray's dashboard may answer a while before the agent that takes jobs is there
  local errors tries
  errors="$(mktemp)"
  for ((tries = 0; tries < 30; tries++)); do
    if interruptible "$@" 2>"$errors"; then rm -f "$errors" && return 0; fi
    grep -q "No available agent" "$errors" || break
    sleep 4
  done
  cat "$errors" >&2
  rm -f "$errors"
  die "the job could not be submitted to $JOB_ADDRESS (see above)."
}

follow_job() { # shows the job's log until it ends; dies unless it succeeds
  local failures=0 status
  while ((failures < 10)); do
    interruptible ray job logs --follow --address "$JOB_ADDRESS" "$JOB_ID" 2>/dev/null || true # a traceback if Ray is gone
    status="$(ray job status --address "$JOB_ADDRESS" "$JOB_ID" 2>&1)" || status=
    case "$status" in
      *succeeded*) JOB_RUNS=0 && return 0 ;;
      *"was stopped"* | *failed*) JOB_RUNS=0 && die "the job $JOB_ID did not succeed (see above)." ;;
      *"Status for job"*) failures=0 ;; # it runs: only its log stream broke off
      *) failures=$((failures + 1)) ;;
    esac
    sleep 2
  done
  die "Ray at $JOB_ADDRESS no longer answers."
}

# shellcheck source=launch/common.sh
source "$HERE/launch/common.sh"
main "$@"
