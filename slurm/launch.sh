#!/usr/bin/env bash
# The body of every .sbatch file: runs one stage on all nodes of this job.
#   launch.sh STAGE experiment=NAME [key=value ...]
# On USR1 (Slurm sends it before the time limit, see --signal) it passes the signal on, gives the stage
# R1TRAIN_SAVE_SECONDS to save and stop, and requeues the job; the stage then resumes from its last checkpoint.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck disable=SC1091 source=slurm/cluster.env
source "$here/cluster.env"
# shellcheck disable=SC1091 source=slurm/overrides.sh
source "$here/overrides.sh"

stage=$1; shift
experiment=$(value_of experiment "" "$@")
step=$(value_of step "$stage" "$@")
root=$(value_of root "$R1TRAIN_RUN_ROOT/$experiment" "$@")
overrides=("$@" "stage=$stage" "step=$step" "root=$root")

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${MASTER_ADDR:-${hosts[0]}} R1TRAIN_LOG_DIR=$root/$step/logs
# shellcheck disable=SC1091 source=slurm/container.sh
source "$here/container.sh"

stopping=false
# shellcheck disable=SC2317  # called by the trap
stop() {
  echo "launch.sh: USR1: asking the stage to save (at most $R1TRAIN_SAVE_SECONDS s), then requeue"
  stopping=true
  kill -USR1 "$srun_pid"
  { sleep "$R1TRAIN_SAVE_SECONDS"; scontrol requeue "$SLURM_JOB_ID"; } &
  timer_pid=$!
}
# One task per node that may use all of the node's cores: torchrun starts the processes.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=1 \
  "${container[@]}" "$here/run_node.sh" -m r1train "${overrides[@]}" &
srun_pid=$!
trap stop USR1
code=0
wait "$srun_pid" || code=$?
while kill -0 "$srun_pid" 2>/dev/null; do   # a trapped signal ends wait early
  code=0
  wait "$srun_pid" || code=$?
done
if $stopping; then
  kill "$timer_pid"   # a finished job would be requeued too
  if [ ! -e "$root/$step/result.json" ]; then scontrol requeue "$SLURM_JOB_ID"; fi
fi
exit "$code"
