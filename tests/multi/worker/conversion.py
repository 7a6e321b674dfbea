"""Imported checkpoints in our model, single process: OUT/NAME/run of every model that test_conversion.py made."""

from dataclasses import replace
from pathlib import Path

import torch
from tiny import config

from r1train.convert.export_plan import model_of_run
from r1train.convert.live import hf_weights
from r1train.convert.names import entries
from r1train.dist.init import Device
from r1train.model.build import build_model
from r1train.model.sharded import sharded_tensors
from r1train.train.checkpoint import latest_checkpoint, load_module

LAYOUTS = ("single",)


def run(layout: str, device: Device, out: Path) -> dict:
    """By the model's name: logits [sequences, tokens, vocabulary], and the weights under Hugging Face's names."""
    result = {}
    for folder in sorted(path.parent for path in out.glob("*/run")):
        model = replace(model_of_run(folder / "run"), init_std=0.3)
        tokens = torch.load(out / "tokens.pt") % model.vocab_size
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        module = build_model(config(layout, model=model), device)
        load_module(module, latest_checkpoint(folder / "run"))
        with torch.no_grad():
            ours = module.eval()(tokens, positions, None)
        weights = hf_weights(entries(model), sharded_tensors(module.sharded_state_dict()))
        result[folder.name] = {"logits": ours, "weights": {name: tensor.clone() for name, tensor in weights}}
    return result
