"""The push of weights and the order of a rollout, with a stand-in for vLLM that joins tensors as vLLM does.

transformers reads what was pushed in a process of its own: the CPU stand-ins of this one spoil its rotary tables.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from shapes import DENSE
from stand_in_vllm import Joined, StandIn, engine_config
from tiny import YARN_MODEL, Tokens, config, prompts, set_expert_bias

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
    from r1train.rollout import vllm

    cfg, module = model
    options = engine_config(cfg, tmp_path, push_mib=1, fp8=tmp_path.name.startswith("test_fp8"))
    package = SimpleNamespace(LLM=lambda **arguments: StandIn(arguments), SamplingParams=lambda **fields: fields)
    monkeypatch.setattr(vllm, "import_vllm", lambda fp8: package)
    return vllm.VllmEngine(options, module, Tokens())


def test_a_rollout_pushes_when_the_policy_is_newer(engine):
    from r1train.rollout.vllm_options import request_seed

    groups = engine.generate(prompts(), PARAMS, policy_version=4)
    llm = engine._llm
    assert [len(group.samples) for group in groups] == [2] * 5
    for group, prompt in zip(groups, prompts(), strict=True):
        for index, one in enumerate(group.samples):
            assert (one.prompt_id, one.index, one.finish, one.policy_version) == (prompt.id, index, "eos", 4)
            # Whichever ended first: the answer to its own request, with the log-probabilities of its tokens.
            second = 6 + request_seed(PARAMS, prompt.id, index) % 10
            assert (one.tokens.tolist(), one.text) == ([5, second, 1], f"5 {second}")
            assert one.logprobs.tolist() == pytest.approx([-0.5, -second / 10, -0.1])
    engine.generate(prompts(), PARAMS, policy_version=4)
    engine.generate(prompts(), PARAMS, policy_version=6)
    assert llm.calls == [
        *("reset_prefix_cache", "enqueue 10", "sleep 1"),
        *("wake_up", "enqueue 10", "sleep 1"),
        *("wake_up", "reset_prefix_cache", "enqueue 10", "sleep 1"),
    ]
    assert llm.model.r1train_policy_version == 6
    written = json.loads((engine._cfg.run_dir / "engine" / "rank_00000" / "config.json").read_text())
    assert (written["eos_token_id"], written["bos_token_id"]) == (1, 0)
    assert llm.arguments["distributed_executor_backend"] == "external_launcher"
    # Other kernels of experts want them in another order than a push gives them.
    assert llm.arguments["moe_backend"] == "triton"
    # vLLM's external launcher reads these, also where torchrun has not set them.
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["0", "1", "0"]


class Told:
    """A watcher that writes down what it hears, and after how many steps."""

    def __init__(self, engine) -> None:
        self.engine, self.heard, self.polls = engine, [], []

    @property
    def steps(self) -> int:
        return self.engine._llm.llm_engine.steps

    def finished(self, place, prompt, sample) -> None:
        self.heard.append((self.steps, place, prompt.id, sample.index))

    def poll(self) -> None:
        self.polls.append(self.steps)


@pytest.mark.parametrize("model", ["dense"], indirect=True)
def test_a_watcher_hears_of_every_sample_while_the_others_are_drawn(engine):
    """Ten samples of five prompts, two end in a step, the last first; the watcher has a turn after every step."""
    told = Told(engine)
    groups = engine.generate(prompts(), PARAMS, policy_version=1, watcher=told)
    ids = [prompt.id for prompt in prompts()]
    assert told.heard == [(step, 5 - step, ids[5 - step], index) for step in range(1, 6) for index in (1, 0)]
    assert told.polls == [1, 2, 3, 4, 5]
    assert [group.prompt.id for group in groups] == ids


@pytest.mark.parametrize("model", ["dense"], indirect=True)
def test_a_killed_rollout_keeps_the_groups_that_were_whole(engine, tmp_path):
    """rollout.store_groups with this engine: three steps drew three groups, the fourth never came."""
    from r1train.rl.watch import RolloutWatcher
    from r1train.rollout.journal import Journal

    def journal() -> Journal:
        return Journal(tmp_path / "a.part.jsonl", PARAMS, policy_version=1, weights={})

    class Graders:
        def __init__(self) -> None:
            self.submitted = []

        def submit(self, key, prompt, response) -> None:
            self.submitted.append((key, response))

        def poll(self) -> None:
            pass

    engine.generate([], PARAMS, policy_version=1)
    engine._llm.llm_engine.broken_after = 3
    graders = Graders()
    watcher = RolloutWatcher(graders, [0, 1, 2, 3, 4], journal=journal(), attempt=0, group_size=2)
    with pytest.raises(RuntimeError, match="killed"):
        engine.generate(prompts(), PARAMS, policy_version=1, watcher=watcher)
    assert [key for key, _ in graders.submitted] == [9, 8, 7, 6, 5, 4]
    assert journal().found(0) == {place: prompts()[place].id for place in (2, 3, 4)}


class Parting:
    """The first of two ranks of an engine; the other one draws something else from the second exchange on."""

    number = place = 0
    engine_size, pp_size = 2, 1
    exchanges = 0

    def asked(self, jobs: list) -> list:
        from r1train.rollout.engine_ranks import EngineJob

        return [EngineJob(0, number, job) for number, job in enumerate(jobs)]

    def of_engine(self, value: object) -> list:
        if not isinstance(value, tuple):
            return [value, "other"]
        self.exchanges += 1
        return [value, value if self.exchanges == 1 else ("other", value[1])]

    def of_replica(self, value: object) -> list:
        return [value]


@pytest.mark.parametrize("model", ["dense"], indirect=True)
def test_a_journal_has_no_group_of_an_engine_that_parted(engine, tmp_path, monkeypatch):
    """Ten samples, two end in a step: what was agreed on after two steps is kept, a restart draws the rest."""
    from r1train.rl.watch import RolloutWatcher
    from r1train.rollout import vllm
    from r1train.rollout.engine_ranks import EnginesParted
    from r1train.rollout.journal import Journal

    def journal() -> Journal:
        return Journal(tmp_path / "a.part.jsonl", PARAMS, policy_version=1, weights={})

    engine.generate([], PARAMS, policy_version=1)
    engine._ranks = Parting()
    monkeypatch.setattr(vllm, "STEPS_PER_EXCHANGE", 2)
    graders = SimpleNamespace(submit=lambda key, prompt, response: None, poll=lambda: None)
    watcher = RolloutWatcher(graders, [0, 1, 2, 3, 4], journal=journal(), attempt=0, group_size=2)
    with pytest.raises(EnginesParted):
        engine.generate(prompts(), PARAMS, policy_version=1, watcher=watcher)
    assert journal().found(0) == {place: prompts()[place].id for place in (3, 4)}


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


def test_the_older_runner_gets_one_seed_for_all_and_leaves_the_trainers_numbers_alone(engine):
    """Seeds of single requests would be drawn one by one in every step there."""
    engine.generate(prompts(), PARAMS, policy_version=1)
    llm = engine._llm
    assert None not in {request["seed"] for request in llm.requests}
    llm.llm_engine.new_runner = False
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drawn = []
    for name in ("push", "push", "another"):
        engine.generate(prompts(), replace(PARAMS, name=name), policy_version=1)
        drawn.append(llm.llm_engine.drawn[-5:])
    assert {request["seed"] for request in llm.requests} == {None}
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.rand(3), expected)


def test_an_engine_of_several_ranks_is_started_for_all_of_them(engine):
    """Their rows together, and sums over ranks without memory handles, which the trainer's memory may not have."""
    from r1train.rollout.vllm_options import llm_arguments

    cfg = engine._cfg
    cfg.rollout = replace(cfg.rollout, engine_tp=4, engine_whole_experts=True)
    four = llm_arguments(cfg, Tokens(), record_routes=False)
    assert (four["tensor_parallel_size"], four["max_num_seqs"], four["enable_expert_parallel"]) == (4, 32, True)
    assert four["disable_custom_all_reduce"]
    cfg.rollout = replace(cfg.rollout, engine_tp=1, engine_whole_experts=False)
    one = llm_arguments(cfg, Tokens(), record_routes=False)
    assert (one["tensor_parallel_size"], one["max_num_seqs"]) == (1, 8)
    assert not {"enable_expert_parallel", "disable_custom_all_reduce"} & one.keys()


def test_the_engine_has_room_for_what_evaluations_ask(engine):
    """12 tokens of a prompt, 6 of a rollout's response and 9 of an evaluation's."""
    engine.generate(prompts(), PARAMS, policy_version=1)
    assert engine._llm.arguments["max_model_len"] == 21


def test_a_tokenizer_without_an_end_lets_every_response_go_on(engine):
    engine._tokenizer.eos_id = -1
    engine.generate(prompts(), PARAMS, policy_version=1)
    assert {(tuple(one["stop_token_ids"]), one["ignore_eos"]) for one in engine._llm.requests} == {((), True)}


def test_a_rank_without_prompts_takes_part_in_the_push_only(engine):
    assert engine.generate([], PARAMS, policy_version=1) == []
    assert engine._llm.calls == ["reset_prefix_cache", "sleep 1"]


@pytest.mark.parametrize("model", ["deepseek"], indirect=True)
def test_fp8_pushes_what_an_fp8_export_holds(engine):
    """Names, types and values of the exporter, but for the MTP layer and its copies; the sums cover scales, too."""
    from r1train.convert.export_plan import FP8, hf_tensors
    from r1train.convert.fp8 import dequantise, quantise
    from r1train.rollout.push import full_weights, served_entries

    engine.generate(prompts(), PARAMS, policy_version=3)
    llm, model = engine._llm, engine._cfg.model
    assert llm.calls == ["reload_weights", "reset_prefix_cache", "enqueue 10", "sleep 1"]
    assert "moe_backend" not in llm.arguments
    sent = {name: tensor for parts in llm.model.parts.values() for name, tensor in parts.items()}
    mtp = f"model.layers.{model.num_layers}."
    stored = [item for one in hf_tensors(served_entries(model), FP8) for item in one.stored()]
    exported = {name: dtype for name, dtype, _ in stored if not name.startswith(mtp)}
    assert sent.keys() == exported.keys()
    in_fp8 = {name for name, tensor in sent.items() if tensor.dtype == FP8}
    assert in_fp8 == {name for name, dtype in exported.items() if dtype == FP8}
    assert "model.layers.1.self_attn.kv_b_proj.weight" in in_fp8 and "lm_head.weight" not in in_fp8
    plain = dict(full_weights(engine._module, model, dtype=torch.float32))
    for name in in_fp8:
        values, scale = quantise(plain[name])
        assert torch.equal(sent[name].view(torch.uint8), values.flatten().view(torch.uint8)), name
        assert torch.equal(sent[f"{name}_scale_inv"], scale.flatten())
        error = dequantise(values, scale, first_row=0, dtype=torch.float32) - plain[name]
        assert error.norm() < 0.05 * plain[name].norm()
    written = json.loads((engine._cfg.run_dir / "engine" / "rank_00000" / "config.json").read_text())
    assert written["quantization_config"]["weight_block_size"] == [128, 128]


@pytest.mark.parametrize("model", ["deepseek"], indirect=True)
def test_fp8_values_that_change_after_the_push_stop_the_run(engine, monkeypatch):
    from r1train.rollout.push import PushFailed

    load = Joined.load_weights

    def corrupt(model, weights):
        load(model, weights)
        name = "model.layers.1.self_attn.o_proj.weight"
        model.parts[name][name].view(torch.uint8)[7] ^= 1

    monkeypatch.setattr(Joined, "load_weights", corrupt)
    with pytest.raises(PushFailed, match="differ from the trainer's in 1/float8_e4m3fn"):
        engine.generate(prompts(), PARAMS, policy_version=2)
