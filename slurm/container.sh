# shellcheck shell=bash
# Sourced by launch.sh and convert.sbatch after cluster.env: container=(...), srun's options for the image, () without one.
container=()
if [ -n "${R1TRAIN_CONTAINER_IMAGE:-}" ]; then
  # shellcheck disable=SC2034  # read by who sources this
  container=(--container-image="$R1TRAIN_CONTAINER_IMAGE" --container-mounts="$R1TRAIN_CONTAINER_MOUNTS"
    --no-container-mount-home --container-workdir="$R1TRAIN_HOME")
fi
