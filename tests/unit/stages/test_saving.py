"""A rollout that cannot be trusted ends the run, with the state before it saved."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from r1train.config.load import config_tree, load_config
from r1train.errors import DataError, R1TrainError
from r1train.rl.routing import ReplayNotUsed
from r1train.rollout.engine_ranks import check_agreed
from r1train.rollout.push import PushFailed, check_sums
from r1train.rollout.vllm_answers import check_routes, stage_routes
from r1train.stages import saving
from r1train.stages.lineage import config_reasons


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps of which a checkpoint was written."""
    steps: list[int] = []

    def write(trainer, extra_modules) -> None:
        assert extra_modules == {"reference": "module"}
        folder = trainer.cfg.run_dir / "checkpoints" / f"step_{trainer.state.step:08d}"
        folder.mkdir(parents=True)
        (folder / "_DONE").touch()
        steps.append(trainer.state.step)

    monkeypatch.setattr(saving, "save_checkpoint", write)
    return steps


def trainer(run_dir: Path, *, offload: bool = False) -> SimpleNamespace:
    cfg = SimpleNamespace(run_dir=run_dir, rl=SimpleNamespace(offload_during_rollout=offload))
    return SimpleNamespace(cfg=cfg, state=SimpleNamespace(step=6))


def fail(made: SimpleNamespace, error: Exception) -> None:
    with saving.saved_at_failure(made, {"reference": "module"}):
        raise error


@pytest.mark.parametrize("kind", [PushFailed, ReplayNotUsed])
def test_what_is_wrong_with_a_rollout_saves_the_state_once(tmp_path: Path, saved: list[int], kind: type):
    made = trainer(tmp_path)
    with pytest.raises(kind, match="weights differ. State saved at step 6"):
        fail(made, kind("weights differ"))
    with pytest.raises(kind):
        fail(made, kind("weights differ"))
    assert saved == [6]


def advice(ask: Callable[[], object]) -> str:
    """What the error says after "Fix:"."""
    with pytest.raises(R1TrainError) as caught:
        ask()
    return str(caught.value).partition("Fix: ")[2]


@pytest.mark.parametrize(
    ("ask", "override"),
    [
        (lambda: check_agreed(["a", "b"]), "rollout.engine_tp=1"),
        (lambda: check_sums({"2/float32": 1}, {"2/float32": 2}, policy_version=1), "rollout.engine=native"),
        (lambda: stage_routes(None, 5, None), "rl.record_routing=false"),
        (lambda: check_routes(np.zeros((5, 1, 2), dtype=np.uint8), 5), "rl.record_routing=false"),
    ],
)
def test_advice_that_decides_the_result_says_how_the_stage_goes_on(ask: Callable[[], object], override: str):
    """The run is begun: with another config alone it would be refused as stale."""
    assert f"{override} with stale=keep" in advice(ask)
    two = ["cluster=eight_gpus", "parallel=dp8", "optim=adamw_bf16", "rollout.engine=vllm", "rollout.engine_tp=2"]
    begun = ["experiment=tiny", "stage=grpo", "stage.init_from=somewhere", *two]
    drop = ["rollout.engine_tp=1"] if override == "rollout.engine=native" else []
    then, now = (config_tree(load_config(options, check_files=False)) for options in (begun, [*begun, *drop, override]))
    assert any(reason.startswith(f"{override.partition('=')[0]} was") for reason in config_reasons(then, now))


def test_other_errors_and_a_state_in_host_memory_save_nothing(tmp_path: Path, saved: list[int]):
    with pytest.raises(DataError, match="bad$"):
        fail(trainer(tmp_path), DataError("bad"))
    with pytest.raises(PushFailed, match="weights differ$"):
        fail(trainer(tmp_path, offload=True), PushFailed("weights differ"))
    assert saved == []
