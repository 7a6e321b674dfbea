#!/usr/bin/env bash
# Finds a working Python, makes .venv and installs r1train into it with the versions of constraints.txt.
# Usage: tools/bootstrap.sh [--find]   --find prints the Python it would take and stops. Does nothing when nothing changed.
set -euo pipefail

# megatron-core 0.19.2 and torch 2.11.0 both have wheels for exactly these; 3.12 first, it is what NGC and our tests run.
readonly VERSIONS=(3.12 3.13)

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv="$repo/.venv"
stamp="$venv/.r1train-installed" # last thing written: the environment is whole
marker="$venv/.r1train-started"  # an install began; without the stamp it was cut off

say() { printf 'bootstrap: %s\n' "$*" >&2; }

# Runs a candidate and prints its version and real path; fails where it does not run (a pyenv shim without a version),
# is no GIL-bound CPython of VERSIONS, or lacks what the install needs (venv, pip, headers for the one C extension).
# shellcheck disable=SC2016  # Python, not shell
probe() {
    "$1" -I -c '
import os, sys, sysconfig
import bz2, ctypes, ensurepip, lzma, ssl, venv, zlib
version = "%d.%d" % sys.version_info[:2]
headers = os.path.join(sysconfig.get_path("include"), "Python.h")
usable = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")
if version not in sys.argv[1:] or not usable or not os.path.exists(headers):
    sys.exit(1)
print(version, os.path.realpath(sys._base_executable))
' "${VERSIONS[@]}" </dev/null 2>/dev/null
}

# Every place a Python may be, best first.
candidates() {
    local version pyenv="${PYENV_ROOT:-${HOME:-/nonexistent}/.pyenv}"
    if [[ -n "${PYTHON:-}" ]]; then type -P "$PYTHON" || true; fi
    for version in "${VERSIONS[@]}"; do type -aP "python$version" || true; done
    type -aP python3 || true
    for version in "${VERSIONS[@]}"; do
        find "$pyenv/versions" -mindepth 3 -maxdepth 3 -path "*/$version*/bin/python" 2>/dev/null | sort -rV || true
    done
}

# Prints "<version> <path>" of the first candidate that works.
find_python() {
    local candidate
    if [[ -n "${PYTHON:-}" ]] && ! probe "$PYTHON" >/dev/null; then say "PYTHON=$PYTHON does not fit; looking further"; fi
    while read -r candidate; do
        if probe "$candidate"; then return 0; fi
    done < <(candidates)
    return 1
}

# What the environment was made from; a moved checkout counts, because the scripts in .venv/bin carry its path.
fingerprint() {
    cat "$repo/pyproject.toml" "$repo/constraints.txt" <(printf '%s\n' "$repo" "$python_path") | sha256sum | cut -d' ' -f1
}

# The environment runs, belongs to this Python and still has its main packages (nothing is imported).
venv_runs() {
    "$venv/bin/python" -I -c '
import importlib.util, os, sys
if os.path.realpath(sys._base_executable) != sys.argv[1]:
    sys.exit(1)
for name in sys.argv[2:]:
    if importlib.util.find_spec(name) is None:
        sys.exit(1)
' "$python_path" "$@" >/dev/null 2>&1
}

make_venv() {
    if [[ -e "$marker" ]] || ! venv_runs pip; then
        if [[ -e "$venv" ]]; then say "rebuilding .venv (broken, cut off, or of another Python)"; fi
        rm -rf "$venv"
        "$python_path" -m venv "$venv"
    fi
}

install_project() {
    local log="$venv/install.log"
    touch "$marker"
    rm -f "$stamp"
    say "installing into .venv (a fresh one takes about 2 minutes and 5 GB)"
    if ! (cd "$repo" && "$venv/bin/python" -m pip install --no-input --disable-pip-version-check --progress-bar off \
        -c constraints.txt -e '.[test]' && "$venv/bin/python" -m pip check --disable-pip-version-check) >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        say "pip failed (above: the end of $log); correct that and run the same command again"
        return 1
    fi
    fingerprint >"$stamp.new"
    mv "$stamp.new" "$stamp"
    rm -f "$marker"
}

if ! found=$(find_python); then
    say "no working Python 3.12 or 3.13 with venv and headers on PATH or in pyenv: install one" \
        "(Debian/Ubuntu: apt-get install python3.12-venv python3.12-dev; pyenv: pyenv install 3.12) and run this again."
    exit 2
fi
python_path=${found#* }
if [[ "${1:-}" == "--find" ]]; then
    echo "$python_path"
    exit 0
fi

exec 9<"$repo" # two makes at once must not install into one environment
flock 9
if [[ -e "$stamp" && "$(<"$stamp")" == "$(fingerprint)" ]] && venv_runs pip torch megatron.core r1train; then
    exit 0
fi
if ! type -P "${CC:-cc}" >/dev/null && ! type -P gcc >/dev/null; then
    say "no C compiler, which one dependency (pycosat) is built with: install one (Debian/Ubuntu: apt-get install gcc)."
    exit 2
fi
say "using Python ${found%% *} at $python_path"
make_venv
install_project
say "done: .venv/bin/python"
