"""Logits and greedy tokens of small models, built on one device: backend.py cpu|cuda OUT.pt [WEIGHTS.pt]

WEIGHTS.pt: another run's output, whose weights are taken by their names in checkpoints.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "multi" / "worker"))  # for tiny and shapes

from shapes import DENSE, MOONLIGHT, V2_LITE, V3
from tiny import LAYOUTS, Tokens, config, prompts

from r1train.dist.init import close_processes, init_processes, select_device
from r1train.rollout.engine import SamplingParams

# The value width of the others, 12, is not for megatron-core's fused rotation kernel.
FUSED_ROPE = replace(V3, v_head_dim=16)
WINDOWS = replace(FUSED_ROPE, attention_windows=(8, None, 5, None, 3))
MODELS = {"windows": WINDOWS, "v2_lite": V2_LITE, "moonlight": MOONLIGHT, "v3": V3, "fused_rope": FUSED_ROPE, **DENSE}
GREEDY = SamplingParams(samples_per_prompt=1, temperature=0.0, top_p=1.0, max_response_tokens=12, seed=1, name="greedy")


def run(name: str, device, weights: dict | None) -> dict:
    """One model: weights by name, logits [2, 40, V] and greedy tokens of each prompt."""
    import torch

    from r1train.model.build import build_model
    from r1train.model.sharded import sharded_tensors
    from r1train.rollout.native import NativeEngine

    cfg = config("single", model=MODELS[name])
    cfg = replace(cfg, cluster=replace(cfg.cluster, device=device.type))
    model = build_model(cfg, device).eval()
    shards = {(shard.key, shard.global_offset): shard.data for shard in sharded_tensors(model.sharded_state_dict())}
    with torch.no_grad():
        if weights is not None:
            assert shards.keys() == weights.keys(), shards.keys() ^ weights.keys()
            for key, data in shards.items():
                data.copy_(weights[key])
        tokens = torch.randint(0, 64, (2, 40), generator=torch.Generator().manual_seed(1)).to(device.torch_device)
        logits = model(tokens, torch.arange(40, device=device.torch_device)[None], None)
        groups = NativeEngine(model, Tokens(), batch_size=8).generate(prompts(), GREEDY, policy_version=0)
    return {
        "weights": {key: data.detach().cpu().clone() for key, data in shards.items()},
        "logits": logits.float().cpu(),
        "tokens": [group.samples[0].tokens.tolist() for group in groups],
    }


def main(device_type: str, out: Path, weights: Path | None) -> None:
    cluster = replace(config("single").cluster, device=device_type)
    device = select_device(cluster)
    init_processes(device, LAYOUTS["single"], cluster)
    import torch

    from r1train.dist.seed import seed_all

    seed_all(1)
    given = torch.load(weights, weights_only=False) if weights else {}
    torch.save({name: run(name, device, given.get(name, {}).get("weights")) for name in MODELS}, out)
    close_processes()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
