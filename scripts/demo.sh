#!/usr/bin/env bash
# From nothing to a fine-tuned Lift policy and a report of it, in runs/demo. Every setting is in experiment=demo.
# A demo that was interrupted goes on where it was; `rm -r runs/demo` starts afresh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run=runs/demo
step() { # command name-of-the-run-folder overrides...
    local command=$1 folder=$run/$2 begin=$SECONDS
    shift 2
    if [[ -e $folder/summary.json ]]; then
        echo "== $folder is there already"
        return
    fi
    echo "== d2ppo $command experiment=demo $* run_dir=$folder"
    .venv/bin/d2ppo "$command" experiment=demo "$@" run_dir="$folder" resume=true
    echo "== took $((SECONDS - begin)) s"
}

begin=$SECONDS
step demos demos demos.out=$run/lift.hdf5
step pretrain plain data=$run/lift.hdf5 dispersive=off
step pretrain dispersive data=$run/lift.hdf5
step evaluate evaluate-dispersive checkpoint=$run/dispersive/policy.safetensors baseline=$run/plain/policy.safetensors
step finetune finetuned checkpoint=$run/dispersive/policy.safetensors
step evaluate evaluate-finetuned checkpoint=$run/finetuned/policy.safetensors \
    baseline=$run/dispersive/policy.safetensors evaluation.video=2
.venv/bin/d2ppo report $run/demos $run/plain $run/dispersive $run/evaluate-dispersive $run/finetuned \
    $run/evaluate-finetuned --run-dir $run/report
echo "demo: done in $((SECONDS - begin)) s after set-up; open $run/report/report.html"
