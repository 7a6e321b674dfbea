"""Training state and the reference policy in host memory: what moves, what stays, and that no number changes."""

from dataclasses import replace

import pytest
import torch

PRECISIONS = ("fp32", "bf16")


def build(device, precision: str = "fp32"):
    from tiny import OPTIM, config

    from r1train.dist.seed import seed_all
    from r1train.train.setup import build_trainer

    seed_all(1)
    return build_trainer(config("single", optim=replace(OPTIM, precision=precision)), device, total_steps=10)


def step(trainer, seed: int):
    from tiny import windows

    from r1train.train.batches import dense_micro_batches
    from r1train.train.forward import LmObjective
    from r1train.train.step import train_step

    return train_step(trainer, dense_micro_batches(windows(4, seq_length=32, seed=seed), 2), LmObjective())


def bytes_of(tensors) -> int:
    """Of the storages behind them, each counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({id(one): one.nbytes() for one in {s.data_ptr(): s for s in storages if s.nbytes()}.values()}.values())


def optimizer_tensors(trainer) -> list[torch.Tensor]:
    parts = [part.optimizer for part in trainer.optimizer.chained_optimizers]
    masters = [one for part in parts for group in part.param_groups for one in group["params"]]
    return masters + [value for part in parts for state in part.state.values() for value in state.values()]


def weights(trainer) -> dict[str, tuple[int, torch.Tensor]]:
    return {name: (value.data_ptr(), value.detach().clone()) for name, value in trainer.module.named_parameters()}


def gradients(trainer) -> list[torch.Tensor]:
    return [buffer.grad_data for chunk in trainer.chunks for buffer in chunk.buffers + chunk.expert_parallel_buffers]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_steps_are_the_same_numbers_with_rollouts_in_between(device, precision: str):
    from r1train.train.offload import TrainingState

    plain, moved = build(device, precision), build(device, precision)
    state = TrainingState(moved)
    for seed in range(3):
        with state.on_host(), torch.no_grad():
            moved.module(torch.arange(8)[None], torch.arange(8)[None], None)
        expected, found = step(plain, seed), step(moved, seed)
        assert (found.logs, found.grad_norm) == (expected.logs, expected.grad_norm)
    assert expected.grad_norm > 0
    for (name, left), (_, right) in zip(plain.module.named_parameters(), moved.module.named_parameters(), strict=True):
        assert torch.equal(left, right), name
    for left, right in zip(optimizer_tensors(plain), optimizer_tensors(moved), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_but_the_weights_leaves(device, precision: str):
    from r1train.train.offload import TrainingState

    trainer = build(device, precision)
    step(trainer, 0)
    count = sum(value.numel() for value in trainer.module.parameters())
    before, views = weights(trainer), optimizer_tensors(trainer)
    mine = {value.untyped_storage().data_ptr() for value in trainer.module.parameters()}
    own = [value for value in views if value.untyped_storage().data_ptr() not in mine]
    # fp32: two moments, the masters are the weights; bf16: masters too.
    assert bytes_of(own) >= count * 4 * (2 if precision == "fp32" else 3)
    contents = [value.clone() for value in views]
    assert bytes_of(gradients(trainer)) >= count * 4
    assert any(value.abs().max() > 0 for value in gradients(trainer))
    state = TrainingState(trainer)
    with state.on_host():
        assert (bytes_of(own), bytes_of(gradients(trainer))) == (0, 0)
        for name, value in trainer.module.named_parameters():
            assert value.data_ptr() == before[name][0] and torch.equal(value, before[name][1]), name
    for value, content in zip(optimizer_tensors(trainer), contents, strict=True):
        assert torch.equal(value, content)
    assert all(value.abs().max() == 0 for value in gradients(trainer))
    kept = [buffer.data_ptr() for buffer in state._host]
    with state.on_host():
        pass
    assert [buffer.data_ptr() for buffer in state._host] == kept, "host memory is used again"


def test_master_weights_still_lead_the_weights_afterwards(device):
    """megatron-core's own offload leaves an fp32 optimizer with copies, whose updates the weights do not get."""
    from r1train.train.offload import TrainingState

    trainer = build(device)
    step(trainer, 0)
    with TrainingState(trainer).on_host():
        pass
    before = weights(trainer)
    step(trainer, 1)
    moved = [not torch.equal(value, before[name][1]) for name, value in trainer.module.named_parameters()]
    assert sum(moved) > 0.9 * len(moved)


@pytest.fixture
def batch():
    from tiny import windows

    from r1train.train.batches import dense_micro_batches

    return dense_micro_batches(windows(2, seq_length=32, seed=9), 2)


def losses(model, batch) -> torch.Tensor:
    from r1train.train.forward import LmObjective, forward_only

    return forward_only(model, batch, LmObjective())[0]


def test_reference_in_host_memory_says_the_same(device, batch):
    from r1train.rl.reference import Reference

    trainer = build(device)
    step(trainer, 0)
    stays, moves = Reference(trainer, offload=False), Reference(trainer, offload=True)
    step(trainer, 1)
    for _ in range(2):
        with stays.on_device() as left, moves.on_device() as right:
            assert torch.equal(losses(left, batch), losses(right, batch))
            assert not torch.equal(losses(left, batch), losses(trainer.module, batch))
    for one in (stays, moves):
        one.refresh(trainer)
    with stays.on_device() as left, moves.on_device() as right:
        assert torch.equal(losses(left, batch), losses(trainer.module, batch))
        assert torch.equal(losses(right, batch), losses(trainer.module, batch))


def test_reference_is_on_the_device_for_its_passes_only(device):
    """Awake it is a copy; asleep, and so in checkpoints, it is the same host memory every time."""
    from r1train.rl.reference import Reference

    reference = Reference(build(device), offload=True)
    asleep = [value.data_ptr() for value in reference.model.parameters()]
    with reference.on_device() as model:
        assert not set(asleep) & {value.data_ptr() for value in model.parameters()}
    assert [value.data_ptr() for value in reference.model.parameters()] == asleep
    assert not any(value.requires_grad for value in reference.model.parameters())
