"""tools/bootstrap.sh: which Python it takes, and that it installs when and only when something changed."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

TOOLS = ["bash", "sh", "cat", "cc", "cp", "cut", "dirname", "find", "flock", "mkdir", "mv", "rm", "sha256sum", "sort"]
TOOLS += ["tail", "touch"]
# Runs the real probe in this interpreter, which then says it is another version under another name.
FAKE_PYTHON = """#!/bin/sh
real={real}
[ "$1" = -I ] || exit 99
code="import sys, sysconfig
sys.version_info = ({version}, 0, 'final', 0)
sys._base_executable = '$0'
{prelude}
$3"
shift 3
exec "$real" -I -c "$code" "$@"
"""
DEAD_SHIM = "#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n"
# Stands for Python and for the environment it makes; pip calls go to a log instead of a package index.
FAKE_INSTALLER = """#!/bin/sh
case "$1 $2" in
    "-I -c") echo "3.12 $BASE" ;;
    "-m venv") mkdir -p "$3/bin" && cp "$BASE" "$3/bin/python" ;;
    "-m pip") echo "$@" >> "$PIP_LOG"; echo "the reason"; exit "${PIP_RC:-0}" ;;
esac
"""


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def tools(tmp_path) -> Path:
    """A folder with the commands the script needs and no Python at all."""
    folder = tmp_path / "tools-bin"
    folder.mkdir()
    for name in TOOLS:
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    if not (folder / "cc").exists():
        write_script(folder / "cc", "#!/bin/sh\n")
    return folder


@pytest.fixture
def fake_python():
    """fake_python(path, "3, 12"): a Python of that version; skips where this very Python could not make a venv."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists() or shutil.which("bash") is None or not _has_ensurepip():
        pytest.skip("this Python has no ensurepip or no headers, so no fake of it can pass the probe")

    def make(path: Path, version: str, prelude: str = "") -> Path:
        return write_script(path, FAKE_PYTHON.format(real=sys.executable, version=version, prelude=prelude))

    return make


def _has_ensurepip() -> bool:
    return subprocess.run([sys.executable, "-I", "-c", "import ensurepip"], check=False).returncode == 0


def bootstrap(repo: Path, path: list[Path], *args: str, **env: str) -> subprocess.CompletedProcess:
    """The script in an environment that holds nothing but what the test gives."""
    return subprocess.run(
        ["bash", str(repo / "tools/bootstrap.sh"), *args],
        env={"PATH": os.pathsep.join(map(str, path)), **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def found_by(repo: Path, path: list[Path], **env: str) -> str:
    done = bootstrap(repo, path, "--find", **env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_python_312_on_path_wins_over_python3(repo, tools, tmp_path, fake_python):
    fake_python(tmp_path / "bin/python3", "3, 13, 1")
    wanted = fake_python(tmp_path / "bin/python3.12", "3, 12, 1")
    assert found_by(repo, [tmp_path / "bin", tools]) == str(wanted)


def test_python3_is_taken_if_it_is_new_enough(repo, tools, tmp_path, fake_python):
    wanted = fake_python(tmp_path / "bin/python3", "3, 13, 1")
    assert found_by(repo, [tmp_path / "bin", tools]) == str(wanted)


def test_dead_shim_and_old_python3_fall_through_to_pyenv(repo, tools, tmp_path, fake_python):
    write_script(tmp_path / "shims/python3.12", DEAD_SHIM)
    write_script(tmp_path / "shims/python3.13", DEAD_SHIM)
    fake_python(tmp_path / "shims/python3", "3, 11, 7")
    fake_python(tmp_path / "pyenv/versions/3.11.7/bin/python", "3, 11, 7")
    fake_python(tmp_path / "pyenv/versions/3.13.0/bin/python", "3, 13, 0")
    fake_python(tmp_path / "pyenv/versions/3.12.9/bin/python", "3, 12, 9")
    wanted = fake_python(tmp_path / "pyenv/versions/3.12.10/bin/python", "3, 12, 10")
    path = [tmp_path / "shims", tools]
    assert found_by(repo, path, PYENV_ROOT=str(tmp_path / "pyenv")) == str(wanted)
    (tmp_path / "home").mkdir()
    (tmp_path / "pyenv").rename(tmp_path / "home/.pyenv")
    assert found_by(repo, path, HOME=str(tmp_path / "home")) == str(
        tmp_path / "home/.pyenv/versions/3.12.10/bin/python"
    )


def test_dead_shim_does_not_hide_a_working_python_behind_it(repo, tools, tmp_path, fake_python):
    write_script(tmp_path / "shims/python3.12", DEAD_SHIM)
    wanted = fake_python(tmp_path / "bin/python3.12", "3, 12, 3")
    assert found_by(repo, [tmp_path / "shims", tmp_path / "bin", tools]) == str(wanted)


def test_pyenv_313_is_taken_without_a_312(repo, tools, tmp_path, fake_python):
    write_script(tmp_path / "pyenv/versions/3.12.1/bin/python", DEAD_SHIM)
    wanted = fake_python(tmp_path / "pyenv/versions/3.13.0/bin/python", "3, 13, 0")
    assert found_by(repo, [tools], PYENV_ROOT=str(tmp_path / "pyenv")) == str(wanted)


def test_variable_python_comes_first_and_is_named_when_it_does_not_fit(repo, tools, tmp_path, fake_python):
    mine = fake_python(tmp_path / "mine/python", "3, 13, 2")
    other = fake_python(tmp_path / "bin/python3.12", "3, 12, 1")
    assert found_by(repo, [tmp_path / "bin", tools], PYTHON=str(mine)) == str(mine)
    old = fake_python(tmp_path / "old/python", "3, 11, 2")
    done = bootstrap(repo, [tmp_path / "bin", tools], "--find", PYTHON=str(old))
    assert done.stdout.strip() == str(other)
    assert f"PYTHON={old} does not fit" in done.stderr


@pytest.mark.parametrize(
    ("version", "prelude"),
    [
        ("3, 11, 9", ""),
        ("3, 14, 0", ""),  # megatron-core 0.19.2 has no wheel for it
        ("3, 13, 1", "sysconfig.get_config_var = lambda name: 1 if name == 'Py_GIL_DISABLED' else None"),
        ("3, 12, 1", "sys.modules['ensurepip'] = None"),  # Debian without python3.12-venv
        ("3, 12, 1", "sys.modules['lzma'] = None"),  # a pyenv build without liblzma; py3langid needs it
        ("3, 12, 1", "sysconfig.get_path = lambda name: '/nonexistent'"),  # no headers
    ],
)
def test_unfit_pythons_end_with_one_sentence_and_exit_code_2(repo, tools, tmp_path, fake_python, version, prelude):
    fake_python(tmp_path / "bin/python3", version, prelude)
    done = bootstrap(repo, [tmp_path / "bin", tools], "--find", PYENV_ROOT=str(tmp_path / "none"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "no working Python 3.12 or 3.13" in done.stderr and "pyenv install 3.12" in done.stderr


@pytest.fixture
def checkout(repo, tools, tmp_path):
    """A copy of the project's set-up files, and setup(**env): the script there, with a stand-in for Python and pip."""
    root = tmp_path / "checkout"
    (root / "tools").mkdir(parents=True)
    for name in ("tools/bootstrap.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(repo / name, root / name)
    base = write_script(tmp_path / "bin/python3.12", FAKE_INSTALLER)
    log = tmp_path / "pip.log"

    def setup(**env: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        log.write_text("")
        done = bootstrap(root, [tmp_path / "bin", tools], BASE=str(base), PIP_LOG=str(log), **env)
        return done, log.read_text().splitlines()

    return root, setup


def test_second_setup_does_nothing(checkout):
    root, setup = checkout
    done, calls = setup()
    assert done.returncode == 0, done.stderr
    assert [call.split()[2] for call in calls] == ["install", "check"]
    assert "-c constraints.txt -e .[test]" in calls[0]
    done, calls = setup()
    assert (done.returncode, done.stdout, done.stderr, calls) == (0, "", "", [])


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_pins_install_again_into_the_same_environment(checkout, name):
    root, setup = checkout
    setup()
    (root / ".venv/kept").touch()
    with (root / name).open("a") as file:
        file.write("# changed\n")
    assert len(setup()[1]) == 2
    assert (root / ".venv/kept").exists()
    assert setup()[1] == []


def test_failed_install_says_why_and_is_not_taken_for_done(checkout):
    root, setup = checkout
    done, calls = setup(PIP_RC="1")
    assert done.returncode == 1 and len(calls) == 1
    assert "the reason" in done.stderr and "pip failed" in done.stderr
    assert not (root / ".venv/.r1train-installed").exists()
    assert len(setup()[1]) == 2


@pytest.mark.parametrize("damage", ["cut off", "no python", "empty"])
def test_half_made_environment_is_made_anew(checkout, damage):
    root, setup = checkout
    setup()
    (root / ".venv/leftover").touch()
    if damage == "cut off":
        (root / ".venv/.r1train-installed").unlink()
        (root / ".venv/.r1train-started").touch()
    elif damage == "no python":
        (root / ".venv/bin/python").unlink()
    else:
        shutil.rmtree(root / ".venv")
        (root / ".venv").mkdir()
        (root / ".venv/leftover").touch()
    done, calls = setup()
    assert done.returncode == 0, done.stderr
    assert len(calls) == 2
    assert not (root / ".venv/leftover").exists()
    assert setup()[1] == []


def test_missing_compiler_is_said_before_anything_is_made(checkout, tools):
    root, setup = checkout
    (tools / "cc").unlink()
    done, calls = setup()
    assert (done.returncode, calls) == (2, [])
    assert "no C compiler" in done.stderr
    assert not (root / ".venv").exists()


def test_constraints_are_names_and_versions_only(repo):
    lines = [line for line in (repo / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) > 90
    assert [line for line in lines if line.count("==") != 1 or set("/@:+ ") & set(line)] == []
    assert {"torch==2.11.0", "megatron-core==0.19.2"} <= set(lines)
