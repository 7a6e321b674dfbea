"""What stages without an evaluation say of themselves in the stage table."""

import json
from types import SimpleNamespace

from r1train.config.load import load_config
from r1train.stages.reward_model import _note
from r1train.stages.session import stage_result


def test_scores_of_reward_models(tmp_path):
    cfg = load_config(["experiment=tiny", "stage=grpo", "stage.init_from=x", f"root={tmp_path}"], check_files=False)
    job = SimpleNamespace(cfg=cfg, started=0.0)
    rows = [{"step": step, "tokens": 10 * step, "loss": 0.5, "time/step_s": 1.0} for step in (1, 2, 3)]
    write(cfg.run_dir, rows)
    assert stage_result(job, {}).note == ""
    rows[1]["reward/preference/helpful"], rows[2]["reward/preference/helpful"] = 0.604, 0.812
    rows[2]["reward/preference/safe"] = -1.0
    write(cfg.run_dir, rows)
    assert stage_result(job, {}).note == "helpful 0.60 to 0.81, safe -1.00 to -1.00"
    assert stage_result(job, {}, note="3 pairs").note == "3 pairs"


def write(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_held_out_numbers_of_a_reward_model():
    assert _note({"pairs": 151, "pair_accuracy": 0.98675, "mean_margin": 2.6}) == "98.7 % of 151 held-out pairs"
    labels = {"responses": 40, "label_accuracy": 0.75, "area_under_curve": 0.8}
    assert _note(labels) == "75.0 % of 40 held-out labels"
    assert _note({}) == ""
