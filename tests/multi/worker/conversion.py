"""Imported checkpoints in our model: logits and gradients of OUT/NAME/run of the models that test_conversion.py made.

Every feature is in every layout; what only repeats one (COVERED names the others) is in the single process alone.
"""

from dataclasses import replace
from pathlib import Path

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region
from megatron.core.transformer.moe.router import TopKRouter
from shards import gradient_shards
from tiny import Config, config

from r1train.config.schema_model import DenseModelConfig
from r1train.convert.export_plan import model_of_run
from r1train.convert.live import hf_weights
from r1train.convert.names import AnyModel, entries
from r1train.dist.init import Device
from r1train.model.gpt import R1Model
from r1train.model.sharded import sharded_tensors
from r1train.train.batches import dense_micro_batches
from r1train.train.checkpoint import latest_checkpoint, load_weights
from r1train.train.forward import LmObjective, MicroBatch, forward_backward, forward_only
from r1train.train.setup import Trainer, build_trainer
from r1train.train.step import reduce_logs

LAYOUTS = ("single", "ep2", "pp2", "tp2", "pp2_ep2")
_DEEPSEEK = ("v3_yarn", "v3_plain_three_dense", "moonlight", "v2_low_rank", "mtp")
_DENSE = ("llama", "qwen2")
COVERED = {
    "ep2": _DEEPSEEK,
    "pp2": (*_DEEPSEEK, *_DENSE),
    "tp2": (*_DEEPSEEK, *_DENSE),
    "pp2_ep2": _DEEPSEEK,
}
MTP_WEIGHT = 0.3


class Logits:
    """The main head's logits [b, s, vocabulary], whole on every tensor-parallel rank."""

    def forward(self, model: R1Model, batch: MicroBatch) -> torch.Tensor:
        return model(batch.tokens, batch.positions, None, output_processor=_whole_logits, output_processor_context=None)


def _whole_logits(*, hidden_states: torch.Tensor, output_layer: torch.nn.Module, context: None) -> torch.Tensor:
    del context
    return gather_from_tensor_model_parallel_region(output_layer(hidden_states)[0]).transpose(0, 1)


def run(layout: str, device: Device, out: Path) -> dict:
    """By the model's name: what _measure gives; of a single process the weights under Hugging Face's names, too."""
    result = {}
    for folder in sorted(path.parent for path in out.glob("*/run")):
        if layout != "single" and folder.name not in COVERED[layout]:
            continue
        trainer = _trainer(layout, model_of_run(folder / "run"), device)
        load_weights(trainer, latest_checkpoint(folder / "run"))
        result[folder.name] = {}
        if layout == "single":
            tensors = hf_weights(entries(trainer.cfg.model), sharded_tensors(trainer.module.sharded_state_dict()))
            result[folder.name]["weights"] = {name: tensor.clone() for name, tensor in tensors}
        if layout == "single" and folder.name == "v3_yarn":
            result["gate"] = _choice(trainer.module.decoder.layers[-1].mlp.router, torch.load(out / "gate.pt"))
        windows = torch.load(out / "windows.pt") % trainer.cfg.model.vocab_size
        result[folder.name] |= _measure(trainer, windows)
    return result


def _trainer(layout: str, model: AnyModel, device: Device) -> Trainer:
    """A trainer for the imported model, without the auxiliary loss, which transformers does not have."""
    cfg: Config = config(layout, model=replace(model, init_std=0.3))
    if not isinstance(model, DenseModelConfig):
        cfg = replace(cfg, model=replace(cfg.model, sequence_loss_coef=0.0))
    if cfg.parallel.pp > 1:
        first = (model.num_layers + 1) // 2
        stages = f"E{'t' * first}|{'t' * (model.num_layers - first)}{'m' * model.mtp_depth}L"
        cfg = replace(cfg, parallel=replace(cfg.parallel, pp_layout=stages))
    return build_trainer(cfg, device, total_steps=1)


def _measure(trainer: Trainer, windows: torch.Tensor) -> dict:
    """Logits of this data-parallel rank's sequences (None before the last stage), losses and this rank's gradients."""
    dp_rank, dp_size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    mine = dense_micro_batches(windows, 1)[dp_rank::dp_size]
    logits = forward_only(trainer.chunks, mine, Logits())
    trainer.model_config.mtp_loss_scaling_factor = MTP_WEIGHT
    trainer.model.zero_grad_buffer()
    trainer.model.train()
    logs, _ = reduce_logs(forward_backward(trainer.chunks, mine, LmObjective()), trainer.device.torch_device)
    return {
        "logits": {dp_rank + i * dp_size: sequence[0] for i, sequence in enumerate(logits)},
        "loss": logs["loss"],
        "mtp_loss": logs.get("mtp_loss"),
        "gradients": gradient_shards(trainer.chunks),
    }


@torch.no_grad()
def _choice(router: TopKRouter, case: dict[str, torch.Tensor]) -> list[list[int]]:
    """The experts that our gate chooses for each token of the case, ascending. Leaves the router as it was."""
    before = router.weight.clone(), router.expert_bias.clone()
    router.weight.copy_(case["weight"])
    router.expert_bias.copy_(case["bias"])
    _, chosen = router.eval()(case["hidden"][:, None])
    router.weight.copy_(before[0])
    router.expert_bias.copy_(before[1])
    return [row.nonzero()[:, 0].tolist() for row in chosen]
