"""Engines over several ranks and pipeline stages, with a stand-in for vLLM that cuts its tensors as vLLM does.

What every rank asked, drew, heard and raised, for the tests to compare.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from megatron.core import parallel_state
from stand_in_vllm import Joined, Output, StandIn, StandInEngine, engine_config
from tiny import Tokens, config, prompts

from r1train.dist.init import Device
from r1train.errors import R1TrainError
from r1train.model.build import build_model
from r1train.rollout import vllm
from r1train.rollout.engine import SamplingParams

LAYOUTS = ("ep2", "pp2", "pp2_ep2")
# Eight samples of an engine take several exchanges, and one that ends two at a time is done before one that ends one.
STEPS_PER_EXCHANGE = 2
ENGINE_TP = {"ep2": 2, "pp2": 1, "pp2_ep2": 2}
PARAMS = SamplingParams(samples_per_prompt=3, temperature=0.9, top_p=1.0, max_response_tokens=6, seed=1, name="push")
# Held whole by every rank of an engine, whatever its size.
WHOLE = ("norm", "mlp.gate.", "q_a_proj", "kv_a_proj")


class Cut(Joined):
    """Keeps its rank's rows of what vLLM cuts."""

    def __init__(self, place: int, size: int) -> None:
        super().__init__()
        self.place, self.size = place, size

    def load_weights(self, weights) -> None:
        def mine(name: str, tensor: torch.Tensor) -> torch.Tensor:
            is_whole = any(part in name for part in WHOLE)
            return tensor if is_whole else tensor.chunk(self.size)[self.place]

        super().load_weights((name, mine(name, tensor)) for name, tensor in weights)


class Routing(StandInEngine):
    """Draws the second token, and tells which experts were used: in layer n (from 0) n and n + 1, unless it forgot.

    parts_in: from how many steps on it draws another token than its engine's other ranks.
    """

    forgot = False
    parts_in: int | None = None

    def step(self) -> list[Output]:
        outputs = super().step()
        if self.parts_in is not None:
            self.parts_in -= 1
        for output in outputs:
            if output.finished:
                output.token_ids[1] = 6 + int(50 * torch.rand(()))
                if self.parts_in is not None and self.parts_in < 0:
                    output.token_ids[1] += 1
                computed = self.lengths[output.request_id] + len(output.token_ids) - 1
                layers = np.arange(3)[None, :, None] + np.arange(2)
                output.routed_experts = np.repeat(0 * layers if self.forgot else layers, computed, axis=0)
        return outputs


class Engine(StandIn):
    """One rank's part of it."""

    def enqueue(self, prompts, *arguments, **options) -> list[str]:
        self.asked_ids = [one["prompt_token_ids"] for one in prompts]
        numbers = super().enqueue(prompts, *arguments, **options)
        self.llm_engine.lengths = {
            name.partition("-")[0]: len(ids) for name, ids in zip(numbers, self.asked_ids, strict=True)
        }
        return numbers


class Heard:
    """A watcher that writes down what it hears."""

    def __init__(self) -> None:
        self.samples, self.polls = [], 0

    def finished(self, place, prompt, sample) -> None:
        self.samples.append((place, prompt.id, sample.index))

    def poll(self) -> None:
        self.polls += 1


def open_engine(layout: str, device: Device, out: Path) -> vllm.VllmEngine:
    cfg, size = config(layout), ENGINE_TP[layout]
    module = build_model(cfg, device)
    options = engine_config(cfg, out / f"vllm_{layout}", engine_tp=size)

    # The last stage's engine takes longer than the others.
    at_once = 1 if parallel_state.get_pipeline_model_parallel_rank() else 2

    def start(**arguments) -> Engine:
        place = torch.distributed.get_rank() % arguments["tensor_parallel_size"]
        return Engine(arguments, model=Cut(place, size), llm_engine=Routing(new_runner=False, at_once=at_once))

    vllm.STEPS_PER_EXCHANGE = STEPS_PER_EXCHANGE
    vllm.import_vllm = lambda fp8: SimpleNamespace(LLM=start, SamplingParams=lambda **fields: fields)
    return vllm.VllmEngine(options, module, Tokens(), record_routes=True)


def run(layout: str, device: Device, out: Path) -> dict:
    engine, rank = open_engine(layout, device, out), torch.distributed.get_rank()
    dp_rank, dp_size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    mine, heard = prompts()[dp_rank::dp_size], Heard()
    groups = engine.generate(mine, PARAMS, policy_version=1, watcher=heard)
    llm = engine._llm
    found = {
        "dp_rank": dp_rank,
        "stage": parallel_state.get_pipeline_model_parallel_rank(),
        "mine": [prompt.id for prompt in mine],
        "asked": llm.asked_ids,
        "drawn": llm.llm_engine.drawn,
        "samples": {sample.prompt_id + str(sample.index): sample for group in groups for sample in group.samples},
        "heard": heard.samples,
        "polls": heard.polls,
        "rows": {name: sum(map(len, parts.values())) for name, parts in llm.model.parts.items()},
    }
    last = torch.distributed.get_world_size() - 1
    if rank == last and ENGINE_TP[layout] > 1:
        llm.llm_engine.parts_in = STEPS_PER_EXCHANGE
    before_it_showed = Heard()
    found["parted"] = raised(engine, mine, before_it_showed)
    found["heard_before_it_showed"] = len(before_it_showed.samples)
    llm.llm_engine.parts_in = None
    llm.llm_engine.forgot = rank == last
    found["forgot"] = raised(engine, mine)
    llm.llm_engine.forgot = False
    if rank == last:
        wrong = llm.model.parts["model.layers.2.self_attn.o_proj.weight"]
        llm.model.load_weights = lambda weights: [one.add_(1) for one in wrong.values()] and None
    engine._policy_version = None
    found["wrong"] = raised(engine, mine)
    found["calls"] = llm.calls
    return found


def raised(engine: vllm.VllmEngine, mine: list, watcher: Heard | None = None) -> str:
    try:
        engine.generate(mine, PARAMS, policy_version=1, watcher=watcher)
    except R1TrainError as error:
        return f"{type(error).__name__}: {error}"
    return ""
