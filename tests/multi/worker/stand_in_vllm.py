"""Stands in for vLLM 0.24: joins tensors as its models do, and steps requests as its engine does."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import torch
from tiny import Config

from r1train.config.schema_eval import EvalConfig
from r1train.config.schema_rl import RolloutConfig

EVAL = EvalConfig(problems_per_task=1, samples_per_problem=1, temperature=0.0, top_p=1.0, max_response_tokens=9)


def engine_config(cfg: Config, run_dir: Path, **rollout: object) -> SimpleNamespace:
    """The small config with what an engine reads besides; rollout: fields of RolloutConfig."""
    settings = RolloutConfig(
        engine="vllm",
        temperature=0.9,
        top_p=1.0,
        max_prompt_tokens=12,
        max_response_tokens=6,
        batch_size=8,
        **rollout,
    )
    return SimpleNamespace(**vars(replace(cfg, run_dir=run_dir)), rollout=settings, eval=EVAL)


class Joined(torch.nn.Module):
    """What an engine holds: gate and up of a layer in one parameter, all experts in one, the rest as it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, dict[str, torch.Tensor]] = {}

    def load_weights(self, weights) -> None:
        for name, tensor in weights:
            joined = name
            for old in ("gate_proj", "up_proj"):
                joined = joined.replace(old, "gate_up_proj")
            if ".experts." in joined:
                joined = f"{joined.partition('.experts.')[0]}.experts.{joined.rpartition('.')[2]}"
            self.parts.setdefault(joined, {})[name] = tensor.clone().flatten()

    def named_parameters(self, *_args, **_kwargs):
        return iter([(name, torch.cat(list(parts.values()))) for name, parts in self.parts.items()])


@dataclass
class Output:
    """RequestOutput and its only CompletionOutput in one. token_ids: as far as the request got."""

    request_id: str
    token_ids: list[int]
    finished: bool
    routed_experts: object = None

    @property
    def outputs(self) -> list["Output"]:
        return [self]

    @property
    def logprobs(self) -> list[dict]:
        return [{token: SimpleNamespace(logprob=-token / 10)} for token in self.token_ids]


@dataclass
class StandInEngine:
    """vLLM's LLMEngine: answers token 5, then the number of the seed's last digit, then <|eos|>.

    Two requests (at_once) end in a step, the last ones first, and another one tells how far it is.
    """

    new_runner: bool = True
    at_once: int = 2
    steps: int = 0
    waiting: dict[str, dict] = field(default_factory=dict)
    broken_after: int | None = None
    drawn: list[float] = field(default_factory=list)

    @property
    def vllm_config(self) -> SimpleNamespace:
        return SimpleNamespace(use_v2_model_runner=self.new_runner)

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def step(self) -> list[Output]:
        self.drawn.append(torch.rand(()).item())
        if self.steps == self.broken_after:
            raise RuntimeError("killed")
        self.steps += 1
        ended = [self.waiting.popitem() for _ in range(min(self.at_once, len(self.waiting)))]
        under_way = [Output(number, [5], finished=False) for number in list(self.waiting)[:1]]
        return [*under_way, *(Output(number, [5, second_token(request), 1], True) for number, request in ended)]


def second_token(request: dict) -> int:
    return 6 if request["seed"] is None else 6 + request["seed"] % 10


@dataclass
class StandIn:
    """vLLM's LLM (0.24), as far as the engine calls it."""

    arguments: dict
    model: Joined = field(default_factory=Joined)
    calls: list[str] = field(default_factory=list)
    llm_engine: StandInEngine = field(default_factory=StandInEngine)
    asked: int = 0

    def wake_up(self) -> None:
        self.calls.append("wake_up")

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset_prefix_cache")

    def apply_model(self, function) -> list:
        return [function(self.model)]

    def collective_rpc(self, method: str, kwargs: dict) -> list:
        assert method == "reload_weights"
        self.calls.append(method)
        return [self.model.load_weights(kwargs["weights_iterator"])]

    def enqueue(
        self, prompts, sampling_params=None, lora_request=None, priority=None, use_tqdm=True, tokenization_kwargs=None
    ) -> list[str]:
        """Numbers that go on over all calls; what it gives has eight random characters behind them, outputs do not."""
        assert not use_tqdm and not self.llm_engine.waiting
        self.calls.append(f"enqueue {len(prompts)}")
        seeds = {request["seed"] for request in sampling_params}
        assert seeds == {None} or len(seeds) == len(sampling_params)
        assert all(list(one) == ["prompt_token_ids"] for one in prompts)
        self.requests = sampling_params
        numbers = [str(self.asked + place) for place in range(len(prompts))]
        self.asked += len(prompts)
        self.llm_engine.waiting = dict(zip(numbers, sampling_params, strict=True))
        return [f"{number}-{place:08x}" for place, number in enumerate(numbers)]
