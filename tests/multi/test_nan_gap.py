"""A NaN on any rank is every rank's largest gap, or a hard stop on it would not see it."""

import json
import math
from collections.abc import Callable
from pathlib import Path


def test_every_rank_sees_nan(tmp_path: Path, warm: Callable[..., str]):
    warm(Path(__file__).parent / "worker" / "nan_gap.py", 2, tmp_path)
    for rank in (0, 1):
        first, second, none = json.loads((tmp_path / f"{rank}.json").read_text())
        assert math.isnan(first) and math.isnan(second)
        assert none == 0.5
