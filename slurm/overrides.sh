# shellcheck shell=bash
# Sourced by launch.sh and schedule.sh: reads the key=value arguments that both hand to `python -m r1train`.

# value_of KEY DEFAULT [key=value ...]: the last value of KEY, as Hydra takes it; fails where it is empty.
value_of() {
  local key=$1 value=$2 argument
  for argument in "${@:3}"; do
    if [[ $argument == "$key"=* ]]; then value=${argument#*=}; fi
  done
  if [ -z "$value" ]; then echo "r1train: $key is missing, e.g. experiment=tiny" >&2; return 2; fi
  echo "$value"
}
