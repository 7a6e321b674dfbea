"""Imports, when it is imported, whatever a stage on CPU may need: for the fork server of dist/warm.py."""

import gc
import importlib

from r1train.dist import cpu
from r1train.stages.run import stage_function

# What the stages import later than at their own import.
LATER = (
    "r1train.config.load",
    "tensorboard.compat",
    "tensorboard.summary.writer.event_file_writer",
    "reasoning_gym",
    # By torch's optimizer, at its first step.
    "torch._dynamo",
)

cpu.install()
for _stage in ("pretrain", "sft", "grpo", "reject", "pairs", "reward_model", "evaluate"):
    stage_function(_stage)
for _module in LATER:
    importlib.import_module(_module)
# Nothing of this becomes garbage; the collector would only copy the pages that the forks share.
gc.collect()
gc.freeze()
