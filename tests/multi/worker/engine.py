"""Generation, prompts spread in three ways and batched in two, and the training forward's logprobs of the tokens."""

from pathlib import Path

import torch
from megatron.core import parallel_state
from tiny import YARN_MODEL, Tokens, config, prompts, set_expert_bias

from r1train.dist.init import Device
from r1train.model.build import build_model
from r1train.model.gpt import R1Model
from r1train.rl.objective import LogprobObjective
from r1train.rollout import prefill
from r1train.rollout.engine import SamplingParams
from r1train.rollout.native import NativeEngine
from r1train.rollout.types import Group, Sample
from r1train.train.forward import MicroBatch, forward_only

LAYOUTS = ("single", "dp2", "ep2", "pp2", "tp2", "pp2_ep2", "tp2_ep2", "tp2_pp2")
PARAMS = SamplingParams(samples_per_prompt=4, temperature=0.8, top_p=0.95, max_response_tokens=16, seed=3, name="test")


def gathered(groups: list[Group]) -> dict[str, tuple[Sample, ...]]:
    """Samples of every rank by prompt id; ranks of one replica return the same groups."""
    parts: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, groups)
    found: dict[str, tuple[Sample, ...]] = {}
    for group in (group for part in parts for group in part):
        known = found.setdefault(group.prompt.id, group.samples)
        assert [s.tokens.tolist() for s in known] == [s.tokens.tolist() for s in group.samples]
    return found


def forward_logprobs(model: R1Model, samples: dict[str, tuple[Sample, ...]]) -> dict[tuple[str, int], torch.Tensor]:
    """The training forward's logprobs of every response, on the last pipeline stage ({} elsewhere)."""
    rows = [(prompt, sample) for prompt in prompts() for sample in samples[prompt.id]]
    width = max(len(prompt.token_ids) + len(sample.tokens) for prompt, sample in rows)
    width += width % 2  # tensor-parallel ranks cut it
    tokens = torch.full((len(rows), width + 1), Tokens.pad_id)
    for row, (prompt, sample) in enumerate(rows):
        ids = [*prompt.token_ids, *sample.tokens.tolist()]
        tokens[row, : len(ids)] = torch.tensor(ids)
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    positions, ones = torch.arange(width)[None], torch.ones(1, width)
    batches = [
        MicroBatch(inputs[row : row + 1], labels[row : row + 1], positions, ones, cu_seqlens=None, extras={})
        for row in range(len(rows))
    ]
    outputs = forward_only(model, batches, LogprobObjective(PARAMS.temperature))
    return {
        (prompt.id, sample.index): output[0, len(prompt.token_ids) - 1 :][: len(sample.tokens)]
        for (prompt, sample), output in zip(rows, outputs, strict=False)
    }


def run(layout: str, device: Device, out: Path) -> dict:
    del out
    model = build_model(config(layout, model=YARN_MODEL), device)
    set_expert_bias(model)
    dp_rank, dp_size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    everything = prompts()
    spread = {
        "first_rank_all": everything if dp_rank == 0 else [],
        "every_other": everything[dp_rank::dp_size],
        # With a bound that cuts prompts, and less to compute on the second data-parallel rank.
        "in_pieces": everything if dp_size == 1 else everything[3 * dp_rank : 3 * dp_rank + 3],
    }
    bound = prefill.SCORE_BYTES
    result: dict = {"generated": {}, "routes": {}, "pp_rank": parallel_state.get_pipeline_model_parallel_rank()}
    for name, mine in spread.items():
        prefill.SCORE_BYTES = 4 * 4 * 20 if name == "in_pieces" else bound
        for batch_size in (32, 3):
            engine = NativeEngine(model, Tokens(), batch_size=batch_size, record_routes=True)
            groups = engine.generate(mine, PARAMS, policy_version=9)
            assert [group.prompt.id for group in groups] == [prompt.id for prompt in mine]
            result["generated"][name, batch_size] = gathered(groups)
            result["routes"][name, batch_size] = {
                (sample.prompt_id, sample.index): sample.routes for group in groups for sample in group.samples
            }
    prefill.SCORE_BYTES = bound
    result["forward"] = forward_logprobs(model, result["generated"]["every_other", 32])
    return result
