#!/usr/bin/env bash
# Starts the retrieval server. The usual settings are environment variables; further flags are passed on:
#
#   PORT=8001 RETRIEVER_MODEL=/models/e5-base-v2 local_dense_retriever/start_server.sh --index_backend faiss --nprobe 64
#   local_dense_retriever/start_server.sh --check     checks packages, index and corpus, and starts nothing
#
# With --verify after --check, the SHA-256 sums of downloaded files too. RETRIEVAL_API_KEY is passed on by the environment.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

INDEX_PATH="${INDEX_PATH:-$here/corpus_and_index/e5_Flat.index}"
CORPUS_PATH="${CORPUS_PATH:-$here/corpus_and_index/wiki-18.jsonl}"
RETRIEVER_NAME="${RETRIEVER_NAME:-e5}"
RETRIEVER_MODEL="${RETRIEVER_MODEL:-intfloat/e5-base-v2}"
TOPK="${TOPK:-3}"
HOST="${HOST:-127.0.0.1}"
PORT="${PORT:-8000}"

python="$here/.venv/bin/python" # the retriever's own environment (README.md), if there is one
if [[ ! -x "$python" ]]; then
  python="${PYTHON:-python3}"
fi

if [[ "${1:-}" == --check ]]; then
  exec "$python" "$here/check_installation.py" "$INDEX_PATH" "$CORPUS_PATH" "${@:2}"
fi

index=(--index_path "$INDEX_PATH")
if [[ " $*" == *" --milvus_uri"* ]]; then # the vectors are there
  index=()
fi

exec "$python" "$here/retrieval_server.py" \
  "${index[@]}" \
  --corpus_path "$CORPUS_PATH" \
  --retriever_name "$RETRIEVER_NAME" \
  --retriever_model "$RETRIEVER_MODEL" \
  --topk "$TOPK" \
  --host "$HOST" \
  --port "$PORT" \
  "$@"
