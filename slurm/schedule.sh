#!/usr/bin/env bash
# Submits every step of a schedule, each to start after the one before it succeeded; prints "step <tab> job id".
#   slurm/schedule.sh [--dry-run] [--sbatch-option=value ...] schedule=r1 experiment=tiny [key=value ...]
# --dry-run prints the sbatch commands instead; there the job id of a step is written as JOB_step.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC1091 source=slurm/cluster.env
source "$here/cluster.env"
# shellcheck disable=SC1091 source=slurm/overrides.sh
source "$here/overrides.sh"
cd "$R1TRAIN_HOME"

dry_run=false options=() overrides=()
for argument in "$@"; do
  case $argument in
    --dry-run) dry_run=true ;;
    -*) options+=("$argument") ;;
    *) overrides+=("$argument") ;;
  esac
done
if $dry_run && [ "$(value_of stale refuse "${overrides[@]}")" = rerun ]; then
  echo "r1train: --dry-run changes nothing, and stale=rerun moves run folders aside: leave one of them out" >&2
  exit 2
fi
experiment=$(value_of experiment "" "${overrides[@]}")
root=$(value_of root "$R1TRAIN_RUN_ROOT/$experiment" "${overrides[@]}")   # launch.sh's default, for the whole chain

# One line per step, in tab-separated fields: id, stage, then all overrides of that step's run.
steps=$("$R1TRAIN_PYTHON" -m r1train mode=steps "${overrides[@]}" "root=$root")
previous=''
while IFS=$'\t' read -r -a step; do
  id=${step[0]} stage=${step[1]}
  command=(sbatch --parsable --job-name="$id")
  if [ -n "$previous" ]; then command+=("--dependency=afterok:$previous" --kill-on-invalid-dep=yes); fi
  command+=("${options[@]}")
  if [ "$stage" = prepare ] || [ "$stage" = pairs ]; then command+=(--nodes=1); fi   # one process, whatever the experiment's size
  command+=("slurm/${stage/#evaluate/eval}.sbatch" "${step[@]:2}")
  if $dry_run; then
    previous=JOB_$id
    printf '%q ' "${command[@]}"; echo
  else
    previous=$("${command[@]}")
    previous=${previous%%;*}   # a federation adds ";cluster"
    printf '%s\t%s\n' "$id" "$previous"
  fi
done <<< "$steps"
