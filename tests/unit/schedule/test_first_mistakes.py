"""What a user does wrong first: no arguments, a bare mode, no GPU, many nodes, a path that cannot be written."""

import subprocess
import sys
from pathlib import Path

import pytest

from r1train import schedule
from r1train.__main__ import MODES, USAGE, main
from r1train.config.load import load_config
from r1train.dist.gpus import count_gpus
from r1train.errors import StageFailed, exit_code


def test_no_arguments_print_the_usage(capsys):
    assert main([]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", USAGE + "\n")


def test_the_rank_that_speaks_ends_first(monkeypatch, capsys):
    """torchrun ends all ranks as soon as one has: rank 0 might be killed before its message."""
    slept: list[float] = []
    monkeypatch.setattr("r1train.__main__.time.sleep", slept.append)
    for rank, waits in (("0", []), ("1", [2.0])):
        monkeypatch.setenv("RANK", rank)
        assert main(["mode=chek"]) == 2
        assert slept == waits and ("no such mode" in capsys.readouterr().err) == (rank == "0")


@pytest.mark.parametrize("mode", MODES)
def test_a_bare_mode(capsys, mode):
    assert main([mode, "experiment=tiny"]) == 2
    assert f"{mode} = None: not key=value. Fix: did you mean mode={mode}?" in capsys.readouterr().err


def test_a_schedule_without_its_gpus_prepares_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(schedule, "count_gpus", lambda: 0)
    monkeypatch.setattr(schedule, "run_steps", lambda *_, **__: None)
    assert main(["experiment=mini_grpo", f"root={tmp_path}/r"]) == 2
    expected = "error: cluster.device is cuda and needs 1 GPU(s), one for each process, but 0 can be seen here. Fix: "
    assert capsys.readouterr().err.startswith(expected)
    assert not (tmp_path / "r").exists()
    monkeypatch.setattr(schedule, "count_gpus", lambda: 1)
    assert main(["experiment=mini_grpo", f"root={tmp_path}/r"]) == 0


def test_gpus_are_counted_as_a_stage_would_see_them(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert count_gpus() == 0


def test_a_schedule_for_many_nodes_is_not_started_on_one(tmp_path, capsys):
    assert main(["experiment=tiny", "cluster=slurm_sim", f"root={tmp_path}/r"]) == 2
    expected = "cluster.nodes is 2, and a schedule that is started by hand runs on this machine alone. Fix: slurm/sch"
    assert expected + "edule.sh --nodes=2" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["experiment=tiny", "root=/proc/nope"], "/proc/nope"),
        (["mode=plan", "experiment=tiny", "plan=/nonexist/x.json"], "/nonexist/x.json"),
    ],
)
def test_a_path_that_cannot_be_written(capsys, words, path):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}") and "No such file or directory (" in said
    assert "Fix: correct the path; the folder it lies in has to be there" in said and "Traceback" not in said


def test_a_full_disk_and_what_is_no_file(capsys):
    def fill() -> None:
        with open("/dev/full", "w") as file:
            file.write("x")

    assert exit_code(fill) == 2
    assert "a file: No space left on device (test_first_mistakes.py, line " in capsys.readouterr().err

    def hang_up() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        exit_code(hang_up)


@pytest.fixture
def failed(tmp_path, monkeypatch):
    """failed(program) -> the StageFailed of a stage that is this program."""
    cfg = load_config(["experiment=tiny", "stage=prepare", f"root={tmp_path}"])

    def run(program: str) -> StageFailed:
        monkeypatch.setattr(schedule, "stage_command", lambda *_: [sys.executable, "-c", program])
        with pytest.raises(StageFailed) as caught:
            schedule.run_step(cfg, [])
        return caught.value

    return run


def test_the_stages_own_error_outlives_what_is_printed_after_it(failed):
    noise = "print('E1123 failed'); [print('at', number) for number in range(50)]"
    error = failed(f"print('error: no gold\\n  - here\\nFix: dig'); {noise}; raise SystemExit(2)")
    assert error.exit_code == 2
    said = str(error).split(" s. ", 1)
    assert said[0].startswith("prepare ended with exit code 2 after ")
    assert said[1].startswith("It says:\nno gold\n  - here\nFix: dig\n(whole output: ") and "at 49" not in said[1]


def test_without_an_error_of_ours_its_last_lines(failed):
    error = failed("[print('at', number) for number in range(50)]; raise SystemExit(3)")
    assert error.exit_code == 1
    assert "It says" not in str(error) and "Its last lines:\nat 20\n" in str(error) and "at 49\n" in str(error)


def test_torchrun_passes_the_exit_code_on_without_its_traceback(tmp_path: Path):
    program = tmp_path / "rank.py"
    program.write_text("import sys; print('error: no gold', file=sys.stderr); sys.exit(2)")
    command = [sys.executable, "-m", "r1train.dist.torchrun", "--standalone", "--nproc-per-node", "1", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "error: no gold\n" in done.stderr and "rank 0 failed first, with exit code 2\n" in done.stderr
    assert "Traceback" not in done.stderr and "ChildFailedError" not in done.stderr
