"""transformers' DeepSeek-V3 as tools/reference_pretrain.py trains it, with the balance of experts that V3 adds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from r1train.config.schema import RunConfig
from r1train.config.schema_model import ModelConfig
from r1train.convert.hf_export_config import model_to_hf
from r1train.train.batches import read_windows


class Balance:
    """One MoE layer's gate: its load for the bias, and the sequence-wise balance loss of the last forward."""

    def __init__(self, moe: torch.nn.Module, model: ModelConfig):
        self._gate, self._model = moe.gate, model
        self.load = torch.zeros_like(moe.gate.e_score_correction_bias)
        self.sequence_loss = torch.zeros(())
        self.sequences = 0
        moe.gate.register_forward_hook(self._after_gate)
        moe.experts.register_forward_pre_hook(self._before_experts)

    def _after_gate(self, _gate: torch.nn.Module, _inputs: tuple, output: torch.Tensor | tuple) -> None:
        """V3 report eq. 17 to 20, without alpha: mean over sequences of sum_i f_i P_i."""
        logits = output[0] if isinstance(output, tuple) else output
        scores = logits.float().sigmoid()
        scores = scores / scores.sum(-1, keepdim=True)
        chosen = torch.zeros_like(scores).scatter(-1, scores.topk(self._model.num_experts_per_token).indices, 1.0)
        chosen, scores = (values.view(self.sequences, -1, self._model.num_experts) for values in (chosen, scores))
        frequency = chosen.mean(1) * self._model.num_experts / self._model.num_experts_per_token
        self.sequence_loss = (frequency * scores.mean(1)).sum(-1).mean()

    def _before_experts(self, experts: torch.nn.Module, inputs: tuple) -> None:
        if experts.training:
            self.load += torch.bincount(inputs[1].flatten(), minlength=self._model.num_experts)

    @torch.no_grad()
    def update_bias(self, rate: float) -> None:
        """Section 2.1.2: up by `rate` where an expert had less than the mean load of the step, down where more."""
        self._gate.e_score_correction_bias += rate * torch.sign(self.load.mean() - self.load)
        self.load.zero_()


class InBf16(torch.nn.Module):
    """Autocast does not know grouped matrix products: their weights are cast here, gradients go to the fp32 weights."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.to(torch.bfloat16) if torch.is_autocast_enabled(weight.device.type) else weight


@dataclass(frozen=True)
class Reference:
    """transformers' model with what is needed around it. precision: fp32, or bf16 by autocast."""

    cfg: RunConfig
    model: DeepseekV3ForCausalLM
    balance: list[Balance]
    device: torch.device

    @property
    def moe(self) -> ModelConfig:
        assert isinstance(self.cfg.model, ModelConfig)
        return self.cfg.model

    def losses(self, windows: torch.Tensor) -> torch.Tensor:
        """windows [b, S + 1] -> cross entropy of every next token, fp32 [b, S]; 0 where it is no target."""
        tokens, labels, counted = read_windows(windows)
        for part in self.balance:
            part.sequences = len(windows)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.cfg.optim.precision != "fp32"):
            logits = self.model(tokens, use_cache=False).logits
        losses = cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
        return losses.view(len(windows), -1) * counted


def build_reference(cfg: RunConfig, weights: Path | None, device: torch.device) -> Reference:
    """transformers' model on the device, weights in fp32: drawn with init_std, or read from `weights`."""
    assert isinstance(cfg.model, ModelConfig)
    if weights is None:
        torch.manual_seed(cfg.seed)
        model = DeepseekV3ForCausalLM(DeepseekV3Config.from_dict(model_to_hf(cfg.model, dtype="float32")))
    else:
        model = DeepseekV3ForCausalLM.from_pretrained(weights, dtype=torch.float32)
    model.to(device)
    layers = [layer.mlp for layer in model.model.layers[cfg.model.num_dense_layers :]]
    for moe in layers:
        moe.gate.forward = _without_autocast(moe.gate.forward, device)
        if device.type == "cuda":
            for name in ("gate_up_proj", "down_proj"):
                parametrize.register_parametrization(moe.experts, name, InBf16(), unsafe=True)
    return Reference(cfg, model, [Balance(moe, cfg.model) for moe in layers], device)


def _without_autocast(forward: Callable, device: torch.device) -> Callable:
    """V3 computes its gates in fp32; autocast would not."""

    def run(*args: torch.Tensor) -> torch.Tensor | tuple:
        with torch.autocast(device.type, enabled=False):
            return forward(*args)

    return run


def build_adamw(reference: Reference) -> torch.optim.AdamW:
    optim = reference.cfg.optim
    matrices = [parameter for parameter in reference.model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in reference.model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    fused = reference.device.type == "cuda"
    return torch.optim.AdamW(groups, lr=0.0, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=fused)
