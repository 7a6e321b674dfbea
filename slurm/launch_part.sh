#!/usr/bin/env bash
# launch.sh for stages that can be cut into the jobs of an array: each job is a part with a run folder inside the stage's.
#   launch_part.sh STAGE experiment=NAME [key=value ...]
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
# shellcheck disable=SC1091 source=slurm/overrides.sh
source "$here/overrides.sh"
stage=$1; shift
if [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then exec "$here/launch.sh" "$stage" "$@"; fi
first=${SLURM_ARRAY_TASK_MIN:?is set by sbatch --array}
part=$((SLURM_ARRAY_TASK_ID - first + 1))
step=$(value_of step "$stage" "$@")/$(printf 'part_%04d' "$part")
exec "$here/launch.sh" "$stage" "$@" "step=$step" "stage.part=$part" "stage.parts=$SLURM_ARRAY_TASK_COUNT"
