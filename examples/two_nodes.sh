#!/usr/bin/env bash
# Trains the PILCO-style agent on two nodes, both of them this machine: one torchrun agent each, as
# it would be started on each of two machines (there with --master-addr of the first).
#   RANKS: processes on each node (1); PORT: a free one (29500); further arguments go to the command.
#   examples/two_nodes.sh --trainer.max_epochs=3
set -euo pipefail

start_node() {
    "${PYTHON:-python}" -m torch.distributed.run \
        --nnodes=2 --node-rank="$1" --nproc-per-node="${RANKS:-1}" \
        --master-addr=127.0.0.1 --master-port="${PORT:-29500}" \
        -m lightning_proppo fit \
        --config="$(dirname "${BASH_SOURCE[0]}")/../configs/pilco_cartpole.yaml" \
        --trainer.num_nodes=2 --trainer.devices="${RANKS:-1}" --trainer.strategy=ddp "${@:2}"
}

start_node 1 "$@" &
second=$!
status=0
start_node 0 "$@" || status=$?
wait "$second" || status=$?
exit "$status"
