"""Runs one stage as `python -m r1train` does, with an engine that fails: torchrun ... engine_faults.py FAULT AT key=...

FAULT: none; corrupt, one expert of the generation side is spoiled after every push of policy AT or later; die, every
process kills itself in the AT-th call of its engine.
"""

import os
import signal
import sys

import torch

from r1train.__main__ import main as command_line
from r1train.config.load import load_config
from r1train.dist.init import select_device


def spoil_one_expert(module: torch.nn.Module) -> None:
    """Rank 0's first expert of the first expert layer computes something else; every other weight stays."""
    if torch.distributed.get_rank() == 0:
        weights = next(p for name, p in module.named_parameters() if ".experts." in name and "fc2" in name)
        with torch.no_grad():
            weights.mul_(-3.0)


class CorruptedEngine:
    """Generates on a copy of the weights, as an engine of its own does; a new policy is pushed into it first."""

    def __init__(self, job, module, corrupt_from: int):
        from r1train.model.build import build_model
        from r1train.rollout.native import NativeEngine

        self._module, self._copy = module, build_model(job.cfg, job.device)
        options = {"batch_size": job.cfg.rollout.batch_size, "record_routes": job.cfg.rl.record_routing}
        self._engine = NativeEngine(self._copy, job.tokenizer, **options)
        self._corrupt_from, self._holds = corrupt_from, None

    def generate(self, prompts, params, *, policy_version, watcher=None):
        if self._holds != policy_version:
            self._copy.load_state_dict(self._module.state_dict())
            self._holds = policy_version
            if policy_version >= self._corrupt_from:
                spoil_one_expert(self._copy)
        return self._engine.generate(prompts, params, policy_version=policy_version, watcher=watcher)


class DyingEngine:
    """The stage's own engine, until a call of it."""

    def __init__(self, engine, die_at: int):
        self._engine, self._calls, self._die_at = engine, 0, die_at

    def generate(self, prompts, params, *, policy_version, watcher=None):
        self._calls += 1
        found = self._engine.generate(prompts, params, policy_version=policy_version, watcher=watcher)
        if self._calls == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return found


def main(fault: str, at: int, overrides: list[str]) -> int:
    select_device(load_config(overrides).cluster)
    from r1train.stages import grpo

    real = grpo.build_engine
    if fault == "corrupt":
        grpo.build_engine = lambda job, module: CorruptedEngine(job, module, at)
    elif fault == "die":
        grpo.build_engine = lambda job, module: DyingEngine(real(job, module), at)
    return command_line(overrides)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
