#!/usr/bin/env bash
# One per node, started by srun: torchrun with this node's processes. The arguments are what torchrun runs:
#   srun --ntasks-per-node=1 slurm/run_node.sh -m r1train experiment=tiny stage=pretrain
set -euo pipefail
: "${SLURM_JOB_ID:?run_node.sh has to be started by srun inside a Slurm job}"
# shellcheck disable=SC1091 source=slurm/cluster.env
source "$(dirname "${BASH_SOURCE[0]}")/cluster.env"
cd "$R1TRAIN_HOME"

if [ -z "${MASTER_ADDR:-}" ]; then   # launch.sh sets it: a container has no scontrol
  mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  MASTER_ADDR=${hosts[0]}
fi
attempt=job$SLURM_JOB_ID-try${SLURM_RESTART_COUNT:-0}
log_dir=${R1TRAIN_LOG_DIR:-$R1TRAIN_RUN_ROOT/logs}/$attempt/node$SLURM_NODEID
mkdir -p "$log_dir"
export TORCH_FR_DUMP_TEMP_FILE=$log_dir/nccl_trace_rank_   # after a hang: what each rank waited for, by rank
# Only the first process of the first node also writes to the job's output; every process has its own files in log_dir.
tee=0; if [ "$SLURM_NODEID" = 0 ]; then tee=0:3; fi

# USR1 reaches every process of the step. Ignored from here on, torchrun outlives it; stages install their own handler.
trap '' USR1
# Static rendezvous on the first host: ranks follow Slurm's node order (its topology). torchrun's c10d backend
# sorts the nodes by host name as text instead, and ignores --node-rank.
exec "$R1TRAIN_TASK_PYTHON" -m torch.distributed.run \
  --nnodes="$SLURM_NNODES" --node-rank="$SLURM_NODEID" \
  --nproc-per-node="${R1TRAIN_PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}" \
  --rdzv-backend=static --master-addr="$MASTER_ADDR" --master-port="$((20000 + SLURM_JOB_ID % 10000))" \
  --rdzv-id="$attempt" --max-restarts=0 --log-dir="$log_dir" --redirects=3 --tee="$tee" "$@"
