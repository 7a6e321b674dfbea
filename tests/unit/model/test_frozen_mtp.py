"""RL and reward models leave the MTP modules as they are, and train everything else as if these were not there."""

import shutil
from dataclasses import replace

import pytest
import torch

from r1train.config.schema import GrpoStage
from r1train.config.schema_samples import RewardModelStage

COMMON = {"steps": 9, "seq_length": 64, "save_every_steps": 9, "keep_checkpoints": 2, "init_from": "x"}
GRPO = GrpoStage(
    name="grpo",
    prompts="x",
    prompts_per_step=2,
    samples_per_prompt=2,
    minibatches_per_step=1,
    reference_refresh_steps=9,
    **COMMON,
)
REWARD_MODEL = RewardModelStage(
    name="reward_model", kind="pairwise", scored="summary", dataset="x", batch_size=2, heldout_share=0.0, **COMMON
)


def build(device, run_dir, stage=None, *, precision: str = "fp32", ema_decay: float | None = 0.5, **options):
    """A weight decay that bf16 weights show, too; without a stage nothing is frozen."""
    from tiny import LR, OPTIM, Piecewise, Stage, config

    from r1train.dist.seed import seed_all
    from r1train.train.setup import build_trainer

    seed_all(1)
    cfg = config(
        "single",
        run_dir=run_dir,
        stage=stage or Stage(),
        lr=replace(LR, bias_rate=Piecewise(start=0.0)),
        optim=replace(OPTIM, precision=precision, ema_decay=ema_decay, weight_decay=5.0),
    )
    return build_trainer(cfg, device, total_steps=10, **options)


def rl_steps(trainer, device, count: int) -> list:
    """(loss and gauges, gradient norm, experts' load) of updates on the samples of the layouts' test."""
    from rl_gradient import BASE, TEMPERATURE, off_policy, samples

    from r1train.rl.batch import pack_samples, with_extra
    from r1train.rl.objective import GrpoObjective, LogprobObjective
    from r1train.train.forward import forward_only
    from r1train.train.step import train_step

    results = []
    for _ in range(count):
        packed = pack_samples(samples(), seq_length=64, pad_id=2, aggregation=BASE.aggregation, max_response_tokens=32)
        policy = forward_only(trainer.model, packed.batches, LogprobObjective(TEMPERATURE))
        batches = off_policy(with_extra(packed.batches, "policy", policy), device)
        objective = GrpoObjective(BASE, TEMPERATURE, num_tokens=packed.counts.tokens, routing=None)
        result = train_step(trainer, batches, objective)
        trainer.state = trainer.state.after_step(tokens=result.num_tokens, samples=2)
        results.append((result.logs, result.grad_norm, result.gauges))
    return results


def weights(module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def split(values: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """MTP's, and all others."""
    mtp = {name: value for name, value in values.items() if name.startswith("mtp.")}
    assert len(mtp) > 10
    return mtp, {name: value for name, value in values.items() if name not in mtp}


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert left.keys() == right.keys()
    assert [name for name, value in left.items() if not torch.equal(value, right[name])] == []


def assert_close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """But for the order of the gradient norm's sum, by which a bf16 weight may be rounded to its other neighbour."""
    assert left.keys() == right.keys()
    for name, value in left.items():
        rtol = 2**-7 if value.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(value, right[name], rtol=rtol, atol=1e-6, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rl_moves_all_but_mtp_and_nothing_else_changes(device, tmp_path, precision: str):
    """Without freezing, weight decay alone would shrink MTP's matrices."""
    frozen, plain = (build(device, tmp_path, stage, precision=precision) for stage in (GRPO, None))
    before, other = weights(frozen.module), weights(plain.module)
    assert_equal(before, other)
    for (logs, norm, gauges), (expected, expected_norm, _) in zip(
        rl_steps(frozen, device, 3), rl_steps(plain, device, 3), strict=True
    ):
        assert logs == pytest.approx(expected, rel=1e-5, abs=1e-7)
        assert norm == pytest.approx(expected_norm, rel=1e-5) and norm > 0
        # Two expert layers; MTP's, which does not run, is in no gauge.
        assert len(gauges["balance/expert_load"]) == 2 and gauges["balance/max_violation"] > -1
    mtp, rest = split(weights(frozen.module))
    shrunk, expected_rest = split(weights(plain.module))
    assert_equal(mtp, split(before)[0])
    assert_close(rest, expected_rest)
    assert any(not torch.equal(value, mtp[name]) for name, value in shrunk.items())
    assert sum(not torch.equal(value, before[name]) for name, value in rest.items()) > len(rest) / 2
    gradients = [
        {name: one.main_grad for name, one in trainer.module.named_parameters() if not name.startswith("mtp.")}
        for trainer in (frozen, plain)
    ]
    assert_close(*gradients)
    assert any(value.abs().max() > 0 for value in gradients[0].values())
    assert_equal(split(weights(frozen.average.chunks[0]))[0], {name: one.float() for name, one in mtp.items()})


def test_checkpoints_hold_mtp_and_go_on_exactly(device, tmp_path):
    from r1train.train.checkpoint import latest_checkpoint, load_module, load_weights, resume, save_checkpoint

    trainer = build(device, tmp_path, GRPO)
    rl_steps(trainer, device, 2)
    save_checkpoint(trainer)
    saved = weights(trainer.module)
    later = build(device, tmp_path / "sft")  # a stage that trains MTP again
    with torch.no_grad():
        for value in later.module.parameters():
            value.add_(1.0)
    load_weights(later, latest_checkpoint(tmp_path))
    assert_equal(weights(later.module), saved)
    load_module(build(device, tmp_path / "eval").module, latest_checkpoint(tmp_path), use_ema=True)
    again = build(device, tmp_path, GRPO)
    assert resume(again) and again.state == trainer.state
    assert rl_steps(again, device, 2) == rl_steps(trainer, device, 2)
    assert_equal(weights(again.module), weights(trainer.module))
    assert_equal(split(weights(again.module))[0], split(saved)[0])


def test_a_run_that_began_before_mtp_was_frozen_goes_on(device, tmp_path):
    """Its checkpoint has moments for MTP, which nothing asks for any more."""
    from r1train.train.checkpoint import resume, save_checkpoint

    old = build(device, tmp_path / "old")
    rl_steps(old, device, 2)
    save_checkpoint(old)
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    saved = weights(old.module)
    trainer = build(device, tmp_path / "new", GRPO)
    assert resume(trainer)
    assert_equal(weights(trainer.module), saved)
    found, expected = rl_steps(trainer, device, 2), rl_steps(old, device, 2)
    assert [norm for _, norm, _ in found] == pytest.approx([norm for _, norm, _ in expected], rel=1e-5)
    assert_close(split(weights(trainer.module))[1], split(weights(old.module))[1])
    assert_equal(split(weights(trainer.module))[0], split(saved)[0])


def test_a_reward_model_keeps_mtp_too(device, tmp_path):
    from reward_model import PAD, examples

    from r1train.data.preferences import pack_examples
    from r1train.model.value_head import value_head
    from r1train.reward.reward_model import ScoreObjective
    from r1train.train.batches import packed_micro_batches
    from r1train.train.step import train_step

    trainer = build(device, tmp_path, REWARD_MODEL, ema_decay=None, scalar_head=True)
    before = weights(trainer.module)
    batches = packed_micro_batches(pack_examples(examples(), seq_length=48, pad_id=PAD), seq_length=48, pad_id=PAD)
    for _ in range(2):  # the head is zero in the first step, so nothing below it moves
        train_step(trainer, batches, ScoreObjective(value_head(trainer.module), "pairwise"))
    mtp, rest = split(weights(trainer.module))
    assert_equal(mtp, split(before)[0])
    assert sum(not torch.equal(value, before[name]) for name, value in rest.items()) > len(rest) / 2


def test_stages_with_a_language_model_loss_train_mtp(device, tmp_path):
    from tiny import windows

    from r1train.train.batches import dense_micro_batches
    from r1train.train.forward import LmObjective
    from r1train.train.step import train_step

    trainer = build(device, tmp_path)
    before = split(weights(trainer.module))[0]
    train_step(trainer, dense_micro_batches(windows(4, seq_length=32, seed=0), 2), LmObjective())
    after = split(weights(trainer.module))[0]
    assert [name for name, value in after.items() if torch.equal(value, before[name])] == []
