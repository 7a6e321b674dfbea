"""The router that our config builds, against the gate of DeepSeek-V3 written out by hand (report equations 12-16)."""

from dataclasses import replace

import pytest
import torch
from tiny import LAYOUTS, MODEL, OPTIM

from r1train.errors import ConfigError


def router(model, bias: torch.Tensor | None = None):
    from megatron.core.process_groups_config import ProcessGroupCollection

    from r1train.model.router import Router
    from r1train.model.spec_deepseek import transformer_config

    config = transformer_config(model, LAYOUTS["single"], OPTIM, "cpu")
    made = Router(config, pg_collection=ProcessGroupCollection.use_mpu_process_groups())
    torch.nn.init.normal_(made.weight, std=0.3, generator=torch.Generator().manual_seed(3))
    if bias is not None:
        made.expert_bias.copy_(bias)
    return made.eval()


def gates(logits: list[float], model, bias: list[float]) -> list[float]:
    """One token, in plain Python: the weight of every expert, 0 where it is not chosen."""
    if model.router_score == "sigmoid":
        scores = [1 / (1 + 2.718281828459045**-value) for value in logits]
    else:
        powers = [2.718281828459045**value for value in logits]
        scores = [power / sum(powers) for power in powers]
    choice = [score + shift for score, shift in zip(scores, bias, strict=True)]
    experts, groups = range(len(logits)), model.num_expert_groups
    size = len(logits) // groups
    strength = [sum(sorted(choice[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
    open_groups = sorted(range(groups), key=lambda g: -strength[g])[: model.num_groups_per_token]
    reachable = [e for e in experts if e // size in open_groups]
    chosen = sorted(reachable, key=lambda e: -choice[e])[: model.num_experts_per_token]
    total = sum(scores[e] for e in chosen) if model.norm_topk_prob else 1.0
    return [model.routed_scaling_factor * scores[e] / total if e in chosen else 0.0 for e in experts]


V3 = replace(MODEL, num_experts=16, num_experts_per_token=4, num_expert_groups=4, num_groups_per_token=2)
FLAT = replace(MODEL, num_expert_groups=1, num_groups_per_token=1, num_experts_per_token=3)
SOFTMAX = replace(FLAT, router_score="softmax", router_bias=False)
VARIANTS = {
    "v3": (V3, 0.3),
    "one_group": (FLAT, 0.3),
    "without_bias": (replace(V3, router_bias=False), 0.0),
    "softmax": (replace(SOFTMAX, norm_topk_prob=False), 0.0),
    "softmax_normalised": (replace(SOFTMAX, norm_topk_prob=True), 0.0),
    "one_expert": (replace(FLAT, num_experts_per_token=1, norm_topk_prob=False), 0.3),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_router_equals_the_formula(device, variant):
    model, spread = VARIANTS[variant]
    generator = torch.Generator().manual_seed(4)
    bias = (spread * torch.randn(model.num_experts, generator=generator)) if model.router_bias else None
    made = router(model, bias)
    hidden = torch.randn(20, 1, model.hidden_size, generator=generator)
    with torch.no_grad():
        weights, chosen = made(hidden)
    logits = (hidden[:, 0].double() @ made.weight.double().T).tolist()
    shifts = bias.tolist() if bias is not None else [0.0] * model.num_experts
    expected = torch.tensor([gates(token, model, shifts) for token in logits])
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(chosen, expected > 0)
    assert chosen.sum(1).tolist() == [model.num_experts_per_token] * 20


def test_bias_chooses_but_does_not_weigh(device):
    """A bias of 10 puts expert 5 among every token's experts; its weight stays that of its sigmoid."""
    bias = torch.zeros(16)
    bias[5] = 10.0
    made = router(V3, bias)
    hidden = torch.randn(20, 1, V3.hidden_size, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        weights, chosen = made(hidden)
        scores = torch.sigmoid(hidden[:, 0] @ made.weight.T)
    assert chosen[:, 5].all()
    torch.testing.assert_close(weights[:, 5], 2.5 * scores[:, 5] / (scores * chosen).sum(1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights.sum(1), torch.full((20,), 2.5))


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (replace(MODEL, norm_topk_prob=False), "with sigmoid scores and 2 expert(s) per token the gate is always"),
        (
            replace(FLAT, num_experts_per_token=1, norm_topk_prob=True),
            "with sigmoid scores and 1 expert(s) per token the gate is never normalised",
        ),
        (replace(MODEL, router_score="softmax", router_bias=False), "the groups would be scored by logits"),
    ],
)
def test_gates_that_megatron_core_cannot_compute_are_refused(device, model, what):
    from r1train.model.spec_deepseek import transformer_config

    with pytest.raises(ConfigError) as caught:
        transformer_config(model, LAYOUTS["single"], OPTIM, "cpu")
    assert [problem.key for problem in caught.value.problems] == ["model.norm_topk_prob"]
    assert what in str(caught.value)
