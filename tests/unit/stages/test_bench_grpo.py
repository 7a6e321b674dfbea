"""tools/bench_grpo.py: what it computes of times, and that the systems are given the same work."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from r1train.config.load import load_config
from r1train.data.prompts import Prompt
from r1train.errors import R1TrainError

TOOLS = Path(__file__).parents[3] / "tools"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import bench_grpo
    import bench_grpo_peers

    yield SimpleNamespace(main=bench_grpo, peers=bench_grpo_peers)
    for name in ("bench_grpo", "bench_grpo_peers"):
        del sys.modules[name]


def prompt(place: int, length: int) -> Prompt:
    return Prompt(f"p{place}", "gsm8k", "?", "1", {}, tuple(range(length)))


def work(peers, **changes):
    given = {"hf": Path("hf"), "prompts": [prompt(0, 5), prompt(1, 9)], "samples": 4, "tokens": 6, "steps": 3}
    given |= {"learning_rate": 1e-6, "temperature": 0.7, "micro_batch": 2, "dtype": "float32", "gpu_memory_share": 0.3}
    return peers.Work(**given | changes)


def test_the_warm_up_is_left_out_and_rates_are_of_the_measured_steps(bench):
    """Two of five steps are warm-up; 600 tokens in 2, 3 and 6 s are 300, 200 and 100 tokens/s."""
    times = bench.peers.Times()
    for seconds in (90.0, 80.0, 3.0, 2.0, 6.0):
        times.add(step=seconds + 1.0, rollout=seconds)
    row = bench.main.summary(times, tokens=600)
    assert row["step_s"] == {"median": 4.0, "low": 3.0, "high": 7.0}
    assert row["rollout_tokens_per_s"] == {"median": 200.0, "low": 100.0, "high": 300.0}
    assert "generate_tokens_per_s" not in row and (row["tokens"], row["steps"]) == (600, 3)
    (_, _, line) = bench.main.table([{"system": "trl", **row}])
    assert line == "| trl | 4.000 (3.000 to 7.000) | 3.000 (2.000 to 6.000) |  |  | 200 (100 to 300) |  |"


def test_what_trl_does_beside_its_rollout_is_training(bench):
    times = bench.peers.Times({"step": [10.0, 8.0], "rollout": [6.0, 5.0], "push": [1.0, 0.5]})
    parts = bench.peers.with_rest(times).parts
    assert parts["train"] == [4.0, 3.0] and parts["generate"] == [5.0, 4.5]


def test_trl_makes_one_update_of_all_sequences_with_our_algorithm(bench, tmp_path):
    """2 prompts x 4 samples in micro-batches of 2: four of them in an update."""
    options = bench.peers.trl_options(work(bench.peers), scratch=tmp_path, use_vllm=True)
    assert (options["per_device_train_batch_size"], options["gradient_accumulation_steps"]) == (2, 4)
    assert (options["num_generations"], options["max_completion_length"], options["beta"]) == (4, 6, 0.0)
    assert options["generation_kwargs"] == {"ignore_eos": True} and options["vllm_max_model_length"] == 15
    plain = bench.peers.trl_options(work(bench.peers), scratch=tmp_path, use_vllm=False)
    assert plain["generation_kwargs"] == {"min_new_tokens": 6} and "vllm_mode" not in plain
    with pytest.raises(R1TrainError, match="--micro-batch 3 does not divide the 8 sequences"):
        bench.peers.accumulation(work(bench.peers, micro_batch=3))


def test_other_work_is_refused(bench):
    """Another length, or other token ids of the same text, would compare different things."""
    asked = work(bench.peers)
    bench.peers.check_lengths([6] * 8, asked)
    with pytest.raises(R1TrainError, match="8 sequences of 5 to 6 tokens instead of 8 of 6"):
        bench.peers.check_lengths([6] * 7 + [5], asked)
    ours = SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)))
    texts = bench.peers.prompt_texts(asked.prompts, ours, lambda text: list(map(int, text.split())))
    assert texts == ["0 1 2 3 4", "0 1 2 3 4 5 6 7 8"]
    with pytest.raises(R1TrainError, match=r"1 prompts \(p1, ...\) have other token ids"):
        bench.peers.prompt_texts(asked.prompts, ours, lambda text: list(map(int, text.split()))[:5])


def test_narrow_latents_are_seen_in_the_folder(bench, tmp_path):
    for fields, narrow in (
        ('{"kv_lora_rank": 64, "qk_rope_head_dim": 64}', True),
        ('{"kv_lora_rank": 512, "qk_rope_head_dim": 64}', False),
        ('{"head_dim": 64}', False),
    ):
        (tmp_path / "config.json").write_text(fields)
        assert bench.peers.narrow_latents(tmp_path) is narrow


def test_our_config_passes_every_rule_and_keeps_all_groups(bench):
    args = SimpleNamespace(data=Path("data"), run=Path("run"), steps=3, prompts=2, samples=4, tokens=6)
    vars(args).update(row_tokens=512, learning_rate=1e-6, temperature=0.7, gpu_memory_share=0.3)
    for engine in ("native", "vllm"):
        args.overrides = ["experiment=smollm2_grpo"]
        overrides = bench.main.our_overrides(args, [prompt(0, 5), prompt(1, 9)], engine=engine, root=Path("root"))
        cfg = load_config(overrides, check_files=False)
        assert (cfg.stage.steps, cfg.stage.minibatches_per_step, cfg.stage.prompts_per_step) == (5, 1, 2)
        assert (cfg.rollout.engine, cfg.rollout.batch_size, cfg.rollout.max_prompt_tokens) == (engine, 8, 9)
        assert (cfg.rl.kl_coef, cfg.rl.sampling.keep, cfg.rl.record_routing) == (0, "all", False)
        assert cfg.lr.learning_rate.start == 1e-6
