# shellcheck shell=bash
# Every setting of the two launch scripts, with its default; `--help` prints these lines, docs/TRAINING.md has them as a table.
# Sourced by launch/common.sh. A variable of the environment wins over the default; an empty one counts as unset.
# What a rollout itself needs (LLM_API_MODE, SEARCH_BACKEND, …) are settings of search_rollout/config.py.
set -o allexport # preflight, the windows and the job read them too

# --- where things are ---
: "${SLIME_DIR:=$(find_slime)}"                                     # slime: two folders up, else /root/slime
: "${MEGATRON_DIR:=/root/Megatron-LM}"                              # Megatron-LM
: "${MODEL_ARGS_FILE:=$SLIME_DIR/scripts/models/qwen2.5-3B.sh}"     # of slime: sets MODEL_ARGS
: "${HF_CHECKPOINT:=/root/Qwen2.5-3B-Instruct}"                     # the model, as Hugging Face has it
: "${REF_LOAD:=${HF_CHECKPOINT%/}_torch_dist}"                      # the same, converted for Megatron
: "${LOAD_DIR:=}"                                                   # a Megatron checkpoint to go on from; empty: SAVE_DIR
: "${SAVE_DIR:=}"                                                   # where checkpoints go; empty: none is saved
: "${SAVE_INTERVAL:=100}"                                           # rollouts between two checkpoints
: "${PROMPT_DATA:=/root/nq_search/train.parquet}"                   # oai_format_data_preprocess.py makes it
: "${APPLY_CHAT_TEMPLATE:=1}"                                       # 0: the prompts of generate mode are whole texts
: "${EVAL_DATA:=/root/nq_search/test.parquet@[0:1000]}"             # the same; @[from:to] takes these rows only
: "${CUSTOM_CONFIG_PATH:=}"                                         # YAML of settings, slime's --custom-config-path
: "${PYTHON:=python3}"                                              # of slime
: "${LOG_DIR:=$HERE/logs}"                                          # logs of the tmux windows

# --- machines ---
: "${NUM_GPUS:=$(count_gpus)}"                                      # a node: those of CUDA_VISIBLE_DEVICES, else all
check_whole_numbers NUM_GPUS
: "${NUM_NODES:=1}"                                                 # machines that train
: "${RAY_ADDRESS:=}"                                                # join this cluster, http://HEAD:8265; empty: start one
: "${MASTER_ADDR:=127.0.0.1}"                                       # of this node, in the cluster that is started
: "${RAY_PORT:=6379}"                                               # of the cluster that is started
: "${RAY_DASHBOARD_PORT:=8265}"                                     # the same; jobs are submitted here
: "${TENSOR_PARALLEL:=$((NUM_GPUS > 1 ? 2 : 1))}"                   # GPUs that share the trained model's layers
: "${CONTEXT_PARALLEL:=1}"                                          # GPUs that share a sequence
: "${ROLLOUT_GPUS_PER_ENGINE:=$TENSOR_PARALLEL}"                    # GPUs of an SGLang engine
: "${SGLANG_MEM_FRACTION_STATIC:=0.7}"                              # of a GPU's memory, for the engine; less if it runs out

# --- training ---
: "${NUM_ROLLOUT:=3000}"                                            # steps
: "${ROLLOUT_BATCH_SIZE:=32}"                                       # prompts of a step
: "${N_SAMPLES_PER_PROMPT:=8}"                                      # responses to each: GRPO's group
check_whole_numbers ROLLOUT_BATCH_SIZE N_SAMPLES_PER_PROMPT
: "${GLOBAL_BATCH_SIZE:=$((ROLLOUT_BATCH_SIZE * N_SAMPLES_PER_PROMPT))}" # samples of an update; so: one update a step
: "${MAX_TOKENS_PER_GPU:=9216}"                                     # of a micro batch; also bounds a trajectory
: "${USE_KL_LOSS:=1}"                                               # 0 saves the reference model: its memory, a forward pass
: "${KL_LOSS_COEF:=0.00}"                                           # at 0 the divergence is only logged
: "${EPS_CLIP:=0.2}"                                                # clip of the ratio, below
: "${EPS_CLIP_HIGH:=0.28}"                                          # and above
: "${LEARNING_RATE:=1e-6}"                                          # learning rate, constant
: "${ROLLOUT_TEMPERATURE:=$(default_temperature)}"                  # 0.8 in generate mode, 1.0 in chat mode
: "${ROLLOUT_MAX_RESPONSE_LEN:=512}"                                # tokens of one engine call

# --- evaluation and logging ---
: "${EVAL_INTERVAL:=0}"                                             # rollouts between two evaluations; 0: none
: "${EVAL_NAME:=nq_test}"                                           # of the evaluation's curves
: "${EVAL_TEMPERATURE:=0}"                                          # 0: greedy
: "${N_SAMPLES_PER_EVAL_PROMPT:=1}"                                 # responses to each question
: "${USE_WANDB:=0}"                                                 # 1: W&B; the key by `wandb login` or WANDB_API_KEY
: "${USE_TENSORBOARD:=0}"                                           # 1: TensorBoard
: "${TENSORBOARD_DIR:=$LOG_DIR/tensorboard}"                        # its files
: "${RUN_PROJECT:=slime-search-r1}"                                 # of W&B and TensorBoard
: "${RUN_NAME:=qwen2.5-3b-${LLM_API_MODE:-generate}}"               # the same
: "${PREFLIGHT:=1}"                                                 # 0: do not look for mistakes before the start

# --- servers beside the training ---
: "${RETRIEVAL_SERVER_URL:=http://localhost:8000}"                  # on this machine: started; elsewhere: only waited for
: "${START_TIMEOUT_S:=120}"                                         # how long retriever and token router may take to load
: "${RETRIEVER_GPUS:=}"                                             # its CUDA_VISIBLE_DEVICES; empty: it uses none
: "${RETRIEVER_ARGS:=}"                                             # more flags of the server, such as --faiss_gpu
: "${TOKEN_ROUTER_URL:=http://127.0.0.1:30000}"                     # in router modes; on this machine: started
: "${TMUX_SESSION:=slime-search-r1}"                                # name of the tmux session

set +o allexport
check_whole_numbers MAX_TOKENS_PER_GPU TENSOR_PARALLEL CONTEXT_PARALLEL EVAL_INTERVAL START_TIMEOUT_S
