#!/usr/bin/env bash
# From nothing to a fine-tuned Lift policy and a report of it, in runs/demo. Every setting is in experiment=demo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run=runs/demo
step() { # a command of d2ppo; a run that was killed goes on where it was
    echo "== d2ppo $*"
    .venv/bin/d2ppo "$@" experiment=demo resume=true
}

begin=$SECONDS
mkdir -p "$run"
step demos demos.out="$run/lift.hdf5" run_dir="$run/demos"
step pretrain data="$run/lift.hdf5" run_dir="$run/pretrain"
step evaluate checkpoint="$run/pretrain/policy.safetensors" run_dir="$run/evaluate-pretrained"
step finetune checkpoint="$run/pretrain/policy.safetensors" run_dir="$run/finetune"
step evaluate checkpoint="$run/finetune/policy.safetensors" baseline="$run/pretrain/policy.safetensors" \
    run_dir="$run/evaluate-finetuned"
.venv/bin/d2ppo report "$run"
echo "demo: done in $((SECONDS - begin)) s, after set-up"
