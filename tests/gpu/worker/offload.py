"""Training state and reference policy moved to host memory and back on one GPU: offload.py OUT.pt

Three steps each of a trainer that keeps everything on the GPU, of another one like it, and of one that moves around a
forward in between; sizes, addresses and contents of what moved.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "multi" / "worker"))  # for tiny and gpu_main

from gpu_main import gpu_config
from tiny import windows

from r1train.dist.init import close_processes, init_processes, select_device

LAYOUTS = {"bf16": "single", "fp32_moments": "single", "fp32": "single_fp32"}
STEPS = 3


def build(name: str, device):
    from r1train.dist.seed import seed_all
    from r1train.train.setup import build_trainer

    seed_all(1)
    cfg = gpu_config(LAYOUTS[name])
    if name == "fp32_moments":
        cfg = replace(cfg, optim=replace(cfg.optim, moments_dtype="fp32"))
    return build_trainer(cfg, device, total_steps=10)


def one_step(trainer, seed: int) -> tuple:
    from r1train.train.batches import dense_micro_batches
    from r1train.train.forward import LmObjective
    from r1train.train.step import train_step

    result = train_step(trainer, dense_micro_batches(windows(8, seq_length=64, seed=seed), 4), LmObjective())
    return result.logs["loss"], result.grad_norm


def optimizer_tensors(trainer) -> list:
    import torch

    parts = [part.optimizer for part in trainer.optimizer.chained_optimizers]
    masters = [one for part in parts for group in part.param_groups for one in group["params"]]
    values = [value for part in parts for state in part.state.values() for value in state.values()]
    return masters + [value for value in values if isinstance(value, torch.Tensor)]


def forward(model, device) -> float:
    import torch

    from r1train.train.batches import dense_micro_batches
    from r1train.train.forward import LmObjective, forward_only

    batches = [one.to(device.torch_device) for one in dense_micro_batches(windows(4, seq_length=64, seed=99), 4)]
    with torch.no_grad():
        return forward_only(model, batches, LmObjective())[0].double().sum().item()


def allocated() -> int:
    import torch

    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def steps_of(name: str, device) -> list:
    trainer = build(name, device)
    return [one_step(trainer, seed) for seed in range(STEPS)]


def moved(name: str, device) -> dict:
    """The same steps with everything in host memory around a forward before each; then once more, looked at."""
    import torch

    from r1train.train.offload import TrainingState

    trainer = build(name, device)
    state, steps = TrainingState(trainer), []
    for seed in range(STEPS):
        with state.on_host():
            forward(trainer.module, device)
        steps.append(one_step(trainer, seed))
    addresses = [value.data_ptr() for value in trainer.module.parameters()]
    contents = [value.clone().cpu() for value in optimizer_tensors(trainer)]
    result, before = forward(trainer.module, device), allocated()
    with state.on_host():
        inside = allocated()
        same_inside = forward(trainer.module, device)
    after = allocated()
    return {
        "steps": steps,
        "parameters": sum(value.numel() for value in trainer.module.parameters()),
        "freed": before - inside,
        "back": after - inside,
        "forwards": (result, same_inside, forward(trainer.module, device)),
        "addresses_stay": addresses == [value.data_ptr() for value in trainer.module.parameters()],
        "contents_stay": [
            torch.equal(value.cpu(), content)
            for value, content in zip(optimizer_tensors(trainer), contents, strict=True)
        ],
        "pinned": all(buffer.is_pinned() for buffer in state._host),
    }


def reference(device) -> dict:
    from r1train.rl.reference import Reference

    trainer = build("bf16", device)
    stays, start = Reference(trainer, offload=False), allocated()
    moves = Reference(trainer, offload=True)
    asleep = allocated()
    one_step(trainer, 0)
    found = []
    for _ in range(2):
        with stays.on_device() as left, moves.on_device() as right:
            found.append((forward(left, device), forward(right, device), forward(trainer.module, device)))
        stays.refresh(trainer)
        moves.refresh(trainer)
    rest = allocated()
    with moves.on_device():
        awake = allocated()
    return {
        "forwards": found,
        "bytes": sum(value.numel() * value.element_size() for value in trainer.module.parameters()),
        "asleep": asleep - start,
        "awake": awake - rest,
    }


def main(out: Path) -> None:
    first = gpu_config("single")
    device = select_device(first.cluster)
    init_processes(device, first.parallel, first.cluster)
    import torch

    found = {
        name: {"plain": steps_of(name, device), "again": steps_of(name, device), **moved(name, device)}
        for name in LAYOUTS
    }
    torch.save({**found, "reference": reference(device)}, out)
    close_processes()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
