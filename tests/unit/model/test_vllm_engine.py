"""The push of weights and the order of a rollout, with a stand-in for vLLM that joins tensors as vLLM does.

transformers reads what was pushed in a process of its own: the CPU stand-ins of this one spoil its rotary tables.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from shapes import DENSE
from tiny import YARN_MODEL, Tokens, config, prompts, set_expert_bias

from r1train.errors import EnvironmentProblem
from r1train.rollout.engine import SamplingParams

PARAMS = SamplingParams(samples_per_prompt=2, temperature=0.9, top_p=1.0, max_response_tokens=6, seed=1, name="push")
READER = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
with torch.no_grad():
    torch.save(model(torch.load(sys.argv[1] + "/tokens.pt")).logits, sys.argv[1] + "/logits.pt")
"""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """As in a process that no launcher started; what the engine sets for vLLM is gone after the test."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "VLLM_MLA_DISABLE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


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
    token_ids: list[int]
    logprobs: list[dict]
    routed_experts: object = None


@dataclass
class StandIn:
    """vLLM's LLM, as far as the engine calls it; answers every request with tokens 5, 6 and <|eos|>."""

    arguments: dict
    model: Joined = field(default_factory=Joined)
    calls: list[str] = field(default_factory=list)

    def wake_up(self) -> None:
        self.calls.append("wake_up")

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset_prefix_cache")

    def apply_model(self, function) -> list:
        return [function(self.model)]

    def generate(self, inputs, requests, use_tqdm) -> list:
        self.calls.append(f"generate {len(inputs)}")
        assert len({request["seed"] for request in requests}) == len(requests)
        logprobs = [{token: SimpleNamespace(logprob=-0.5)} for token in (5, 6, 1)]
        return [SimpleNamespace(outputs=[Output([5, 6, 1], logprobs)]) for _ in inputs]


@pytest.fixture(params=["deepseek", "dense"])
def model(device, request):
    from r1train.model.build import build_model

    shape = YARN_MODEL if request.param == "deepseek" else DENSE["llama"]
    cfg = config("single", model=shape)
    made = build_model(cfg, device)
    set_expert_bias(made)
    return cfg, made


def pushed(cfg, module) -> dict[str, torch.Tensor]:
    from r1train.rollout.push import full_weights

    return {name: tensor.clone() for name, tensor in full_weights(module, cfg.model, dtype=torch.float32)}


def test_transformers_computes_the_same_with_what_is_pushed(model, tmp_path):
    from safetensors.torch import save_file

    from r1train.convert.hf_export_config import model_to_hf

    cfg, module = model
    save_file(pushed(cfg, module), tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(model_to_hf(cfg.model, dtype="float32")))
    tokens = torch.randint(3, 64, (2, 20), generator=torch.Generator().manual_seed(3))
    torch.save(tokens, tmp_path / "tokens.pt")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-W", "ignore", "-c", READER, str(tmp_path)], check=True, env=environment)
    module.eval()
    with torch.no_grad():
        ours = module(
            tokens,
            torch.arange(20).expand(2, -1),
            None,
            output_processor=lambda hidden_states, output_layer, context: output_layer(hidden_states)[0],
        ).transpose(0, 1)
    torch.testing.assert_close(ours, torch.load(tmp_path / "logits.pt"), atol=2e-5, rtol=1e-5)


@pytest.fixture
def engine(model, monkeypatch, tmp_path):
    from dataclasses import replace

    from r1train.config.schema_rl import RolloutConfig
    from r1train.rollout import vllm

    cfg, module = model
    rollout = RolloutConfig(
        engine="vllm",
        temperature=0.9,
        top_p=1.0,
        max_prompt_tokens=12,
        max_response_tokens=6,
        batch_size=8,
        push_mib=1,
    )
    options = SimpleNamespace(**vars(replace(cfg, run_dir=tmp_path)), rollout=rollout)
    package = SimpleNamespace(LLM=lambda **arguments: StandIn(arguments), SamplingParams=lambda **fields: fields)
    monkeypatch.setattr(vllm, "import_vllm", lambda: package)
    return vllm.VllmEngine(options, module, Tokens())


def test_a_rollout_pushes_when_the_policy_is_newer(engine):
    groups = engine.generate(prompts(), PARAMS, policy_version=4)
    llm = engine._llm
    assert [len(group.samples) for group in groups] == [2] * 5
    first = groups[0].samples[0]
    assert (first.tokens.tolist(), first.finish, first.text, first.policy_version) == ([5, 6, 1], "eos", "5 6", 4)
    assert first.logprobs.tolist() == [-0.5] * 3
    engine.generate(prompts(), PARAMS, policy_version=4)
    engine.generate(prompts(), PARAMS, policy_version=6)
    assert llm.calls == [
        *("reset_prefix_cache", "generate 10", "sleep 1"),
        *("wake_up", "generate 10", "sleep 1"),
        *("wake_up", "reset_prefix_cache", "generate 10", "sleep 1"),
    ]
    assert llm.model.r1train_policy_version == 6
    written = json.loads((engine._cfg.run_dir / "engine" / "rank_00000" / "config.json").read_text())
    assert (written["eos_token_id"], written["bos_token_id"]) == (1, 0)
    assert llm.arguments["distributed_executor_backend"] == "external_launcher"
    # vLLM's external launcher reads these, also where torchrun has not set them.
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["0", "1", "0"]


def test_mla_kernels_are_for_deepseeks_widths_only(engine):
    """This model's latent is not 512 + 64; a dense model has none."""
    narrow = hasattr(engine._cfg.model, "kv_lora_rank")
    assert os.environ.get("VLLM_MLA_DISABLE") == ("1" if narrow else None)


def test_the_engine_follows_the_weights(engine):
    engine.generate(prompts(), PARAMS, policy_version=1)
    name = "model.layers.1.self_attn.o_proj.weight"
    before = engine._llm.model.parts[name][name].clone()
    with torch.no_grad():
        engine._module.decoder.layers[1].self_attention.linear_proj.weight *= 2
    engine.generate(prompts(), PARAMS, policy_version=2)
    assert torch.equal(engine._llm.model.parts[name][name], 2 * before)


def test_a_wrong_weight_after_a_push_stops_the_run(engine, monkeypatch):
    from r1train.rollout.push import PushFailed

    engine.generate(prompts(), PARAMS, policy_version=1)
    load = Joined.load_weights

    def corrupt(model, weights):
        load(model, weights)
        parts = next(parts for name, parts in model.parts.items() if ".layers.2.mlp." in name)
        next(iter(parts.values()))[5] += 0.01

    monkeypatch.setattr(Joined, "load_weights", corrupt)
    with pytest.raises(PushFailed, match="policy 2 the engine's weights differ from the trainer's in 2/float32"):
        engine.generate(prompts(), PARAMS, policy_version=2)


def test_a_weight_that_did_not_arrive_stops_the_run(engine, monkeypatch):
    from r1train.rollout.push import PushFailed

    load = Joined.load_weights
    monkeypatch.setattr(
        Joined, "load_weights", lambda model, weights: load(model, [w for w in weights if "embed_tokens" not in w[0]])
    )
    with pytest.raises(PushFailed, match="outer/float32"):
        engine.generate(prompts(), PARAMS, policy_version=1)


def test_an_engine_that_forgot_its_policy_stops_the_run(engine):
    from r1train.rollout.push import PushFailed

    engine.generate(prompts(), PARAMS, policy_version=1)
    engine._llm.model.r1train_policy_version = 0
    with pytest.raises(PushFailed, match=r"policy 1 was asked for, but the engine holds \[0\]"):
        engine.generate(prompts(), PARAMS, policy_version=1)


def test_without_vllm_the_error_names_the_extra(monkeypatch):
    from r1train.rollout.vllm import import_vllm

    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(EnvironmentProblem, match=r"r1train\[vllm\]"):
        import_vllm()


def test_a_request_has_a_seed_of_its_own():
    from r1train.rollout.vllm import request_seed

    seeds = {request_seed(PARAMS, prompt, index) for prompt in ("a", "b") for index in range(4)}
    assert len(seeds) == 8 and all(0 <= seed < 2**63 for seed in seeds)
    assert request_seed(PARAMS, "a", 0) == request_seed(PARAMS, "a", 0)
