"""When steps have static shapes, in which sizes, and their experts: every one for every token is what the layer is."""

from types import SimpleNamespace

import pytest
import torch
from tiny import YARN_MODEL, Tokens, config, set_expert_bias


@pytest.fixture(scope="module")
def model(device):
    from r1train.model.build import build_model

    made = build_model(config("single", model=YARN_MODEL), device)
    set_expert_bias(made)
    return made.eval()


@torch.no_grad()
@pytest.mark.parametrize("order", ("apart", "upwards", "downwards"))
def test_every_expert_is_the_layer(model, order: str):
    """Expert weights anywhere, or evenly in one buffer in either order: then two products, and the same numbers."""
    from r1train.model import decode_experts

    layer = model.decoder.layers[1].mlp
    inputs = torch.randn(1, 12, 64, generator=torch.Generator().manual_seed(1))
    expected = decode_experts.dispatched(layer, inputs)
    assert expected.abs().max() > 0.1
    weights = decode_experts.expert_weights(layer.experts)
    parameters = [weight for part in weights for weight in part]
    before = [parameter.data for parameter in parameters]
    try:
        if order != "apart":
            lay_out(parameters if order == "upwards" else parameters[::-1])
        up = weights[0] if order != "downwards" else weights[0][::-1]
        assert (decode_experts._stacked(up) is not None) == (order != "apart")
        torch.testing.assert_close(decode_experts.every_expert(layer, inputs), expected, atol=1e-6, rtol=0)
    finally:
        for parameter, data in zip(parameters, before, strict=True):
            parameter.data = data


def lay_out(parameters: list[torch.Tensor]) -> None:
    """Move them one behind another into one buffer, as megatron-core's data-parallel wrapper does."""
    buffer = torch.empty(sum(parameter.numel() for parameter in parameters))
    start = 0
    for parameter in parameters:
        place = buffer[start : start + parameter.numel()].view_as(parameter)
        parameter.data = place.copy_(parameter.data)
        start += parameter.numel()


def test_when_every_expert_pays(device):
    """mini: 6 * 512 * 192 * 32 = 18.9 M operations a token and layer, so up to 10,596 tokens; DeepSeek-V3: 128."""
    from r1train.model.decode_experts import every_expert_pays

    mini = SimpleNamespace(num_moe_experts=32, hidden_size=512, moe_ffn_hidden_size=192)
    large = SimpleNamespace(num_moe_experts=256, hidden_size=7168, moe_ffn_hidden_size=2048)
    assert every_expert_pays(mini, 10_596) and not every_expert_pays(mini, 10_597)
    assert every_expert_pays(large, 128) and not every_expert_pays(large, 129)
    assert every_expert_pays(SimpleNamespace(num_moe_experts=None), 1 << 20)


@pytest.mark.parametrize(
    ("slots", "capacity", "size"),
    [(1, 1024, 128), (129, 1024, 256), (513, 1024, 640), (641, 1024, 896), (1000, 1024, 1024)],
)
def test_sizes_of_what_is_visible(device, slots: int, capacity: int, size: int):
    """Blocks of 128, growing by a quarter once that is more than a block."""
    from r1train.rollout.steps import sized

    assert sized(slots, capacity) == size


def test_sizes_of_rows(model):
    from r1train.rollout.graphs import Plain
    from r1train.rollout.steps import Decoder, StaticSteps

    steps = StaticSteps(Decoder(model, Tokens(), record_routes=False), Plain(), largest=100)
    assert [steps.rows_for(count) for count in (0, 1, 8, 9, 33, 64, 65, 100)] == [8, 8, 8, 16, 64, 64, 100, 100]


def test_the_cpu_computes_steps_as_in_training(model, caplog):
    from r1train.rollout.steps import Decoder, TrainingSteps, choose_steps

    decoder = Decoder(model, Tokens(), record_routes=False)
    with caplog.at_level("INFO", logger="r1train"):
        chosen = [choose_steps(decoder, batch_size=4, cuda_graphs=wanted) for wanted in (True, False)]
    assert all(type(steps) is TrainingSteps for steps in chosen)
    assert [record.message for record in caplog.records] == [
        "generation: no CUDA graphs: the model is on cpu",
        "generation: no CUDA graphs: rollout.cuda_graphs is false",
    ]


@pytest.mark.parametrize(
    ("sizes", "rows", "reason"),
    [
        ((1, 1, 1), 10_596, None),
        ((1, 1, 1), 10_597, "with 10597 rows every expert for every row would cost more than the dispatcher"),
        ((2, 1, 4), 1, "the layout has tensor parallelism of 2 and expert parallelism of 4"),
        ((1, 2, 1), 1, "the layout has pipeline parallelism of 2"),
    ],
)
def test_when_a_gpu_gets_graphs(device, monkeypatch, sizes, rows: int, reason: str | None):
    """With mini's shape; sizes of tensor, pipeline and expert parallelism."""
    from megatron.core import parallel_state

    from r1train.rollout import steps

    for kind, size in zip(("tensor_model", "pipeline_model", "expert_model"), sizes, strict=True):
        monkeypatch.setattr(parallel_state, f"get_{kind}_parallel_world_size", lambda size=size: size)
    mini = SimpleNamespace(num_moe_experts=32, hidden_size=512, moe_ffn_hidden_size=192)
    decoder = SimpleNamespace(device=torch.device("cuda"), model=SimpleNamespace(config=mini))
    assert steps._obstacle(decoder, rows) == reason
