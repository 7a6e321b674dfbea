"""Samples of small models in bf16 with Transformer Engine, drawn with every kind of decode step: graphs.py OUT.pt

Steps as in training, static ones computed anew, and static ones replayed as CUDA graphs; what the trainer's forward
says of the samples; and graphs after their weights changed in place, and after they moved.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "multi" / "worker"))  # for tiny, shapes and gpu_main

from gpu_main import GPU_MODEL, gpu_config
from shapes import LLAMA
from tiny import Tokens, prompts, set_expert_bias

from r1train.dist.init import close_processes, init_processes, select_device
from r1train.rollout.engine import SamplingParams

ROWS, CHECK_EVERY = 16, 4
PARAMS = SamplingParams(samples_per_prompt=8, temperature=0.9, top_p=1.0, max_response_tokens=150, seed=1, name="graph")
SHORT = replace(PARAMS, max_response_tokens=24, top_p=0.9)
SOFTMAX = {"num_expert_groups": 1, "num_groups_per_token": 1, "router_score": "softmax", "router_bias": False}
MODELS = {
    "v3": GPU_MODEL,
    "buffer": GPU_MODEL,  # expert weights lie in one buffer, as in training
    "unrecorded": GPU_MODEL,  # the router's fused kernel
    "windows": replace(GPU_MODEL, attention_windows=(8, None, 5)),
    "softmax": replace(GPU_MODEL, q_lora_rank=None, norm_topk_prob=False, **SOFTMAX),
    "dense": replace(LLAMA, vocab_size=256, hidden_size=256, ffn_hidden_size=512, head_dim=64, init_std=0.05),
}


def build(name: str, device):
    """A model in which eos is likely, so that samples end at different steps."""
    import torch

    from r1train.model.build import build_model

    model = build_model(replace(gpu_config("single"), model=MODELS[name]), device).eval()
    set_expert_bias(model)
    with torch.no_grad():
        model.output_layer.weight[Tokens.eos_id] *= 2.5
        if name == "buffer":
            lay_out(model)
    return model


def lay_out(model) -> None:
    """All parameters into one buffer, the last first, as megatron-core's data-parallel wrapper does."""
    import torch

    parameters = list(model.parameters())[::-1]
    buffer = torch.empty(sum(one.numel() for one in parameters), dtype=parameters[0].dtype, device=parameters[0].device)
    start = 0
    for one in parameters:
        place = buffer[start : start + one.numel()].view_as(one)
        one.data = place.copy_(one.data)
        start += one.numel()


def engines(model, *, record_routes: bool) -> dict:
    """One engine per kind of step, and the runner of the graphs."""
    from r1train.rollout.graphs import Graphs, Plain
    from r1train.rollout.native import NativeEngine
    from r1train.rollout.steps import StaticSteps, TrainingSteps

    made = {}
    runner = Graphs()
    for kind in ("training", "static", "graph"):
        engine = NativeEngine(
            model, Tokens(), batch_size=ROWS, record_routes=record_routes, check_every=CHECK_EVERY, cuda_graphs=True
        )
        assert type(engine.steps) is StaticSteps
        if kind == "training":
            engine.steps = TrainingSteps(engine._decoder)
        else:
            engine.steps = StaticSteps(engine._decoder, runner if kind == "graph" else Plain(), largest=ROWS)
        made[kind] = engine
    return made | {"runner": runner}


def drawn(engine, params: SamplingParams = PARAMS) -> list:
    return [sample for group in engine.generate(prompts(), params, policy_version=0) for sample in group.samples]


def trainer_logprobs(model, samples: list) -> list:
    """Of every sample's tokens, from the training forward."""
    import torch

    found, ids_of = [], {prompt.id: prompt.token_ids for prompt in prompts()}
    for sample in samples:
        start = len(ids_of[sample.prompt_id])
        ids = torch.tensor([[*ids_of[sample.prompt_id], *sample.tokens.tolist()]], device="cuda")
        with torch.no_grad():
            logits = model(ids, torch.arange(ids.shape[1], device="cuda")[None], None)[0, start - 1 : -1].float()
        logprobs = torch.log_softmax(logits / PARAMS.temperature, dim=-1)
        found.append(logprobs.gather(1, ids[0, start:, None])[:, 0].cpu().numpy())
    return found


def run(name: str, device) -> dict:
    import torch

    from r1train.model.decode_experts import _stacked, expert_weights

    model = build(name, device)
    made = engines(model, record_routes=name != "unrecorded")
    runner = made.pop("runner")
    found: dict = {kind: drawn(engine) for kind, engine in made.items()}
    found["trainer"] = {kind: trainer_logprobs(model, found[kind]) for kind in ("training", "graph")}
    if name != "dense":
        up, _ = expert_weights(model.decoder.layers[2].mlp.experts)
        found["stacked"] = _stacked(up[::-1]) is not None
    captures = [runner.captures]
    for kind in ("static", "graph"):
        found[f"{kind}_short"] = drawn(made[kind], SHORT)
        found[f"{kind}_again"] = drawn(made[kind])
    captures.append(runner.captures)
    weight = dict(model.named_parameters())["decoder.layers.2.self_attention.linear_proj.weight"]
    experts = [one for key, one in model.named_parameters() if "experts" in key and "fc2" in key]
    with torch.no_grad():
        for one in (weight, *experts):
            one.mul_(-2.0)
    for kind in ("static", "graph"):
        found[f"{kind}_changed"] = drawn(made[kind])
    captures.append(runner.captures)
    weight.data = weight.data.clone()
    found["graph_moved"] = drawn(made["graph"])
    captures.append(runner.captures)
    return found | {"captures": captures}


def main(out: Path) -> None:
    first = gpu_config("single")
    device = select_device(first.cluster)
    init_processes(device, first.parallel, first.cluster)
    import torch

    from r1train.dist.seed import seed_all

    seed_all(1)
    torch.save({name: run(name, device) for name in MODELS}, out)
    close_processes()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
