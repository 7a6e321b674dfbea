"""What ended a run after an update keeps it from going on until the limit is another."""

import json
from pathlib import Path

from r1train.config.schema_rl import StopIf
from r1train.rl.stops import STOPPED, remember_stop, still_stopped

GAUGES = [{"kl": 0.5, "entropy": 1.5, "loss": 3.0}, {"kl": 2.5, "entropy": 1.0, "loss": 2.0}]


def test_it_goes_on_when_the_limit_is_another(tmp_path: Path):
    limits = StopIf(kl_above=2.0)
    assert still_stopped(tmp_path, limits) is None
    remember_stop(tmp_path, GAUGES, limits, step=6)
    # The gauges of the update that went too far, but only those that may have a limit.
    assert json.loads((tmp_path / STOPPED).read_text()) == {"step": 6, "gauges": [{"kl": 2.5, "entropy": 1.0}]}
    reason = still_stopped(tmp_path, limits)
    assert reason is not None and "stopped at step 6: kl = 2.5 is above 2 (rl.stop_if.kl_above)" in reason
    assert str(tmp_path / STOPPED) in reason
    # A limit that was added since stops as well.
    assert "entropy = 1 is below 1.2" in str(still_stopped(tmp_path, StopIf(kl_above=3.0, entropy_below=1.2)))
    assert still_stopped(tmp_path, StopIf(kl_above=3.0)) is None
    assert not (tmp_path / STOPPED).exists()
    assert still_stopped(tmp_path, limits) is None


def test_nan_is_kept(tmp_path: Path):
    remember_stop(tmp_path, [{"entropy": float("nan")}], StopIf(entropy_below=0.1), step=2)
    assert "entropy = nan" in str(still_stopped(tmp_path, StopIf(entropy_below=0.1)))
    assert still_stopped(tmp_path, StopIf()) is None
