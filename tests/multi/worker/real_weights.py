"""The imported SmolLM2 in our model: loss on the windows that transformers measured, greedy answers to its prompts."""

from dataclasses import replace
from pathlib import Path

import torch
from tiny import Tokens, config

from r1train.convert.export_plan import model_of_run
from r1train.data.prompts import Prompt
from r1train.dist.init import Device
from r1train.model.build import build_model
from r1train.rollout.engine import SamplingParams
from r1train.rollout.native import NativeEngine
from r1train.train.batches import dense_micro_batches
from r1train.train.checkpoint import latest_checkpoint, load_module
from r1train.train.forward import LmObjective, forward_only

LAYOUTS = ("single",)


class SmolTokens(Tokens):
    def __init__(self, eos_id: int):
        self.eos_id = eos_id


def run(layout: str, device: Device, out: Path) -> dict:
    made = torch.load(out / "make.pt")
    model = build_model(config(layout, model=replace(model_of_run(out / "run"), init_std=0.3)), device)
    load_module(model, latest_checkpoint(out / "run"))
    losses = forward_only(model.eval(), dense_micro_batches(made["windows"], 4), LmObjective())
    prompts = [Prompt(f"q{i}", "t", "?", "!", {}, tuple(ids)) for i, ids in enumerate(made["prompts"])]
    params = SamplingParams(
        samples_per_prompt=1, temperature=0.0, top_p=1.0, max_response_tokens=50, seed=1, name="greedy"
    )
    groups = NativeEngine(model, SmolTokens(made["eos"]), batch_size=4).generate(prompts, params, policy_version=0)
    return {
        "loss": torch.cat(losses).mean().item(),
        "responses": [group.samples[0].tokens.tolist() for group in groups],
    }
