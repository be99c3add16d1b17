# shellcheck shell=bash disable=SC2034 # the launch script reads it
# SmolLM2-135M as slime's scripts/models describe a model, for MODEL_ARGS_FILE.
MODEL_ARGS=(
  --swiglu
  --num-layers 30
  --hidden-size 576
  --ffn-hidden-size 1536
  --num-attention-heads 9
  --use-rotary-position-embeddings
  --disable-bias-linear
  --normalization RMSNorm
  --norm-epsilon 9.999999747378752e-06 # as config.json has it: slime compares the two
  --rotary-base 100000
  --group-query-attention
  --num-query-groups 3
  --vocab-size 49152
)
