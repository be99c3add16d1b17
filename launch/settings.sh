# shellcheck shell=bash
# Every setting of the two launch scripts, with its default; `--help` prints these lines, docs/TRAINING.md has them as a table.
# Sourced by launch/common.sh. The environment overrides a default; an empty variable counts as unset.
# Settings of the rollouts (LLM_API_MODE, SEARCH_BACKEND, …) are in search_rollout/config.py.
set -o allexport # preflight, the tmux windows and the job read them too

# --- where things are ---
: "${SLIME_DIR:=$(find_slime)}"                                     # slime: the folder two levels up, else /root/slime
: "${MEGATRON_DIR:=/root/Megatron-LM}"                              # Megatron-LM
: "${MODEL_ARGS_FILE:=$SLIME_DIR/scripts/models/qwen2.5-3B.sh}"     # slime's model file, which defines MODEL_ARGS
: "${HF_CHECKPOINT:=/root/Qwen2.5-3B-Instruct}"                     # the model in Hugging Face's format
: "${REF_LOAD:=${HF_CHECKPOINT%/}_torch_dist}"                      # the model, converted for Megatron
: "${LOAD_DIR:=}"                                                   # a Megatron checkpoint to continue; empty: SAVE_DIR
: "${SAVE_DIR:=}"                                                   # folder for checkpoints; empty: none is saved
: "${SAVE_INTERVAL:=100}"                                           # rollouts between two checkpoints
: "${PROMPT_DATA:=/root/nq_search/train.parquet}"                   # made by oai_format_data_preprocess.py
: "${APPLY_CHAT_TEMPLATE:=1}"                                       # 0: prompts of generate mode are used as they are
: "${EVAL_CONFIG:=/root/nq_search/eval.yaml}"                        # evaluation sets, made by oai_format_data_preprocess.py
: "${EVAL_DATA:=}"                                                  # one evaluation file instead; @[from:to] selects rows
: "${CUSTOM_CONFIG_PATH:=}"                                         # YAML of settings, slime's --custom-config-path
: "${PYTHON:=python3}"                                              # Python with slime's packages
: "${LOG_DIR:=$HERE/logs}"                                          # logs of the tmux windows

# --- machines ---
: "${NUM_GPUS:=$(count_gpus)}"                                      # GPUs per node: those in CUDA_VISIBLE_DEVICES, else all
check_whole_numbers NUM_GPUS
: "${NUM_NODES:=1}"                                                 # machines that train
: "${RAY_ADDRESS:=}"                                                # join this cluster, http://HEAD:8265; empty: start one
: "${MASTER_ADDR:=127.0.0.1}"                                       # address of this node in the cluster that is started
: "${RAY_PORT:=6379}"                                               # port of the cluster that is started
: "${RAY_DASHBOARD_PORT:=8265}"                                     # port of its dashboard, to which jobs are submitted
: "${TENSOR_PARALLEL:=$((NUM_GPUS > 1 ? 2 : 1))}"                   # GPUs that share the trained model's layers
: "${CONTEXT_PARALLEL:=1}"                                          # GPUs that share a sequence
: "${ROLLOUT_GPUS_PER_ENGINE:=$TENSOR_PARALLEL}"                    # GPUs per SGLang engine
: "${SGLANG_MEM_FRACTION_STATIC:=0.7}"                              # share of GPU memory for the engine; lower it if memory runs out
: "${ROUTER_POLICY:=consistent_hashing}"                            # how slime's router chooses an engine: one for all turns of a trajectory

# --- training ---
: "${NUM_ROLLOUT:=3000}"                                            # training steps
: "${ROLLOUT_BATCH_SIZE:=32}"                                       # prompts per step
: "${N_SAMPLES_PER_PROMPT:=8}"                                      # responses per prompt: GRPO's group
check_whole_numbers ROLLOUT_BATCH_SIZE N_SAMPLES_PER_PROMPT
: "${OVER_SAMPLING_BATCH_SIZE:=}"                                   # prompts generated at a time; empty: ROLLOUT_BATCH_SIZE
: "${PARTIAL_ROLLOUT:=0}"                                           # 1: what is generated beyond a step's prompts is resumed in the next step; 0: thrown away
: "${GLOBAL_BATCH_SIZE:=$((ROLLOUT_BATCH_SIZE * N_SAMPLES_PER_PROMPT))}" # samples per optimiser update (default: one update per step)
: "${MAX_TOKENS_PER_GPU:=9216}"                                     # tokens per micro batch; also bounds a trajectory
: "${USE_KL_LOSS:=1}"                                               # 0 saves the reference model's memory and forward pass
: "${KL_LOSS_COEF:=0.00}"                                           # KL coefficient; 0 only logs the divergence
: "${EPS_CLIP:=0.2}"                                                # lower clip of the ratio
: "${EPS_CLIP_HIGH:=0.28}"                                          # upper clip of the ratio
: "${CORRECTION:=none}"                                              # weights against the mismatch of engine and trainer: none, tis (cut at 2), mis (0.5 to 2)
: "${MISMATCH_FIGURES:=1}"                                          # 0: slime's mismatch figures are not computed; saves a forward pass
: "${LEARNING_RATE:=1e-6}"                                          # learning rate, constant
: "${ROLLOUT_TEMPERATURE:=$(default_temperature)}"                  # 0.8 in generate mode, 1.0 in chat mode
: "${ROLLOUT_MAX_RESPONSE_LEN:=512}"                                # maximum tokens per engine call

# --- evaluation and logging ---
: "${EVAL_INTERVAL:=0}"                                             # rollouts between two evaluations; 0: none
: "${EVAL_NAME:=nq_test}"                                           # name of EVAL_DATA's curves
: "${EVAL_TEMPERATURE:=0}"                                          # sampling in evaluation; 0: greedy
: "${N_SAMPLES_PER_EVAL_PROMPT:=1}"                                 # responses per question
: "${USE_WANDB:=0}"                                                 # 1: W&B; the key by `wandb login` or WANDB_API_KEY
: "${USE_TENSORBOARD:=0}"                                           # 1: TensorBoard
: "${TENSORBOARD_DIR:=$LOG_DIR/tensorboard}"                        # TensorBoard's files: a folder per project, in it one per run
: "${RUN_PROJECT:=slime-search-r1}"                                 # project in W&B and TensorBoard
: "${RUN_NAME:=$(model_name)-${LLM_API_MODE:-generate}}"             # name of the run in W&B and TensorBoard
: "${PREFLIGHT:=1}"                                                 # 0: skip the checks before the start

# --- servers beside the training ---
: "${RETRIEVAL_SERVER_URL:=http://localhost:8000}"                  # retriever; started if on this machine, else waited for
: "${START_TIMEOUT_S:=120}"                                         # seconds for retriever and token router to load
: "${RETRIEVER_GPUS:=}"                                             # the retriever's CUDA_VISIBLE_DEVICES; empty: none
: "${RETRIEVER_ARGS:=}"                                             # more flags for the retriever, such as --faiss_gpu
: "${TOKEN_ROUTER_URL:=http://127.0.0.1:30000}"                     # token router of router modes; started if on this machine
: "${TMUX_SESSION:=slime-search-r1}"                                # name of the tmux session

set +o allexport
check_whole_numbers MAX_TOKENS_PER_GPU TENSOR_PARALLEL CONTEXT_PARALLEL EVAL_INTERVAL START_TIMEOUT_S
