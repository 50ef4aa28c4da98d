#!/usr/bin/env bash
# One server over several machines with SGLang's own flags: the same command on every node, ranks 0, 1, ... at the same time.
#   HEAD=10.0.0.1 NODES=2 RANK=0 deploy/multi-node/launch.sh          # on 10.0.0.1, which answers requests
#   HEAD=10.0.0.1 NODES=2 RANK=1 deploy/multi-node/launch.sh          # on the other one
# MODEL, TP (over all nodes), CONFIG, PORT may be set; further arguments go to `sglang serve`.
set -euo pipefail

: "${HEAD:?the address of the node with rank 0}"
: "${NODES:?how many nodes}"
: "${RANK:?of this node, from 0}"
model=${MODEL:-deepseek-ai/DeepSeek-V3}
# Every node reads the policy, and its schedulers compute by it: the files must be the same.
config=${CONFIG:-$(dirname "$0")/../policy.yaml}
tp=${TP:-$((8 * NODES))}

echo "node $RANK of $NODES: $model, tp $tp, policy $(sha256sum <"$config" | cut -c1-12)" >&2
exec moe-opt serve --model "$model" --config "$config" --tp "$tp" \
    --nnodes "$NODES" --node-rank "$RANK" --dist-init-addr "$HEAD:20000" \
    --host 0.0.0.0 --port "${PORT:-30000}" --trust-remote-code "$@"
