"""Weight decay without any gradient: matrices shrink by 1 - lr * weight_decay a step, norm weights and biases stay."""

from dataclasses import replace

import torch


def decayed(device, run_dir, steps: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Every parameter before and after."""
    from tiny import OPTIM, Stage, config

    from r1train.dist.seed import seed_all
    from r1train.train.optim import set_learning_rate
    from r1train.train.setup import build_trainer

    seed_all(1)
    cfg = config("single", run_dir=run_dir, stage=Stage(), optim=replace(OPTIM, weight_decay=0.5))
    trainer = build_trainer(cfg, device, total_steps=10)
    before = {name: value.detach().clone() for name, value in trainer.module.named_parameters()}
    for _ in range(steps):
        for chunk in trainer.chunks:
            chunk.zero_grad_buffer()
        trainer.optimizer.zero_grad()
        set_learning_rate(trainer.optimizer, 0.1)
        trainer.optimizer.step()
    trainer.gather_weights()
    return {name: (before[name], value.detach()) for name, value in trainer.module.named_parameters()}


def test_matrices_decay_and_norms_do_not(device, tmp_path):
    values = decayed(device, tmp_path, steps=3)
    vectors = {name for name, (before, _) in values.items() if before.dim() == 1}
    assert any("norm" in name for name in vectors) and len(vectors) < len(values)
    for name, (before, after) in values.items():
        if name in vectors:
            assert torch.equal(before, after), name
        else:
            torch.testing.assert_close(after, before * (1 - 0.1 * 0.5) ** 3, rtol=1e-5, atol=1e-7, msg=name)
