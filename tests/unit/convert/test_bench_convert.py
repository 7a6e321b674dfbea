"""The benchmark of conversion, on a model of a few hundred kilobytes."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_work_is_timed_and_the_scratch_is_removed(tmp_path):
    tool = [sys.executable, str(ROOT / "tools" / "bench_convert.py"), "--scratch", str(tmp_path)]
    model = ["--model", str(ROOT / "conf" / "model" / "tiny.yaml"), "--layers", "2"]
    done = subprocess.run(
        [*tool, *model, "--repeats", "2", "--workers", "1"], capture_output=True, text=True, timeout=200, check=True
    )
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["disk", "import", "export"]
    assert "100% of the disk" in lines[1]
    assert not list((tmp_path / "bench_convert").glob("*"))
