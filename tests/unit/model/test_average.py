"""The average of the weights against a loop by hand, over real optimizer steps."""

import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
import yaml

DECAY = 0.75


@pytest.fixture
def trainer(device):
    from tiny import OPTIM, config

    from r1train.train.setup import build_trainer

    return build_trainer(config("single", optim=replace(OPTIM, ema_decay=DECAY)), device, total_steps=10)


def step(trainer, seed):
    from tiny import windows

    from r1train.train.batches import dense_micro_batches
    from r1train.train.forward import LmObjective
    from r1train.train.step import train_step

    return train_step(trainer, dense_micro_batches(windows(4, seq_length=32, seed=seed), 2), LmObjective())


def test_average_is_the_hand_loop(trainer):
    expected = {name: value.detach().clone() for name, value in trainer.module.named_parameters()}
    for seed in range(4):
        step(trainer, seed)
        for name, value in trainer.module.named_parameters():
            expected[name] = DECAY * expected[name] + (1 - DECAY) * value.detach()
    found = dict(trainer.average.chunks[0].named_parameters())
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value.detach(), expected[name], rtol=1e-6, atol=1e-7)
    moved = max((value - dict(trainer.module.named_parameters())[name]).abs().max() for name, value in found.items())
    assert moved > 1e-4


def test_biases_of_the_experts_follow_the_model(trainer):
    step(trainer, 0)
    found = {name: value for name, value in trainer.average.chunks[0].named_buffers() if name.endswith("expert_bias")}
    assert len(found) == 3 and all(value.abs().max() > 0 for value in found.values())
    for name, value in trainer.module.named_buffers():
        if name in found:
            assert torch.equal(value, found[name])


def test_a_cache_of_another_length_is_left_alone(trainer):
    """The fused rotary kernel keeps cosines in a buffer that grows with the sequence (megatron-core's YaRN)."""
    rotary = trainer.module.decoder.layers[0].self_attention.rotary_pos_emb
    length = len(rotary.cos_cached)
    rotary.register_buffer("cos_cached", torch.zeros(2 * length, *rotary.cos_cached.shape[1:]), persistent=False)
    step(trainer, 0)
    assert len(trainer.average.chunks[0].decoder.layers[0].self_attention.rotary_pos_emb.cos_cached) == length


def test_no_average_unless_asked(device):
    from tiny import config

    from r1train.train.setup import build_trainer

    assert build_trainer(config("single"), device, total_steps=1).average is None


def test_gauges_count_every_token(trainer):
    """Two experts for each of 4 x 32 tokens in each of three layers; 8 experts, so the mean is 32."""
    gauges = step(trainer, 1).gauges
    assert len(gauges["balance/expert_load"]) == len(gauges["balance/max_violation_per_layer"]) == 3
    for shares, violation in zip(gauges["balance/expert_load"], gauges["balance/max_violation_per_layer"], strict=True):
        assert sum(shares) == pytest.approx(8.0, abs=0.1)
        assert max(shares) - 1 == pytest.approx(violation, abs=0.01)
    second = step(trainer, 2).gauges["balance/expert_load"]
    assert [sum(shares) for shares in second] == pytest.approx([8.0] * 3, abs=0.1)  # the counts start again


@pytest.mark.parametrize("use_ema", [False, True])
def test_weights_or_their_average_are_loaded(trainer, device, tmp_path, use_ema):
    from tiny import config

    from r1train.errors import CheckpointError
    from r1train.log.checkpoints import checkpoints
    from r1train.model.build import build_model
    from r1train.train.checkpoint import load_module, save_checkpoint

    trainer.cfg = replace(trainer.cfg, run_dir=tmp_path)
    step(trainer, 0)
    save_checkpoint(trainer)
    other = build_model(config("single", seed=99), device)
    load_module(other, checkpoints(tmp_path)[0], use_ema=use_ema)
    wanted = trainer.average.chunks[0] if use_ema else trainer.module
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(other.parameters(), wanted.parameters(), strict=True))
    trainer.average = None
    trainer.cfg = replace(trainer.cfg, run_dir=tmp_path / "without")
    save_checkpoint(trainer)
    if use_ema:
        with pytest.raises(CheckpointError, match="keeps no average of the weights"):
            load_module(other, checkpoints(tmp_path / "without")[0], use_ema=True)


@pytest.fixture
def saved(trainer, tmp_path):
    """A run folder with a checkpoint that keeps the average, and one without, after a step that moved them apart."""
    from r1train.train.checkpoint import save_checkpoint

    average = trainer.average
    for name, kept in (("with", average), ("without", None)):
        trainer.cfg, trainer.average = replace(trainer.cfg, run_dir=tmp_path / name), kept
        if kept is not None:
            step(trainer, 0)
        save_checkpoint(trainer)
        (tmp_path / name / "model.yaml").write_text(yaml.safe_dump(asdict(trainer.cfg.model)))
    trainer.average = average
    return tmp_path


@pytest.mark.parametrize("use_ema", [False, True])
def test_weights_or_their_average_are_exported(trainer, saved, use_ema):
    from safetensors.torch import load_file

    from r1train.convert.exporter import ExportOptions, export_checkpoint
    from r1train.convert.live import hf_weights
    from r1train.convert.names import entries
    from r1train.model.sharded import sharded_tensors

    options = ExportOptions(dtype=torch.float32, workers=1, verify=True, use_ema=use_ema)
    export_checkpoint(saved / "with", saved / "out", options)
    found = load_file(saved / "out" / "model-00001-of-00001.safetensors")
    module = trainer.average.chunks[0] if use_ema else trainer.module
    wanted = dict(hf_weights(entries(trainer.cfg.model), sharded_tensors(module.sharded_state_dict())))
    assert len(wanted) > 100
    for name, value in wanted.items():
        assert torch.equal(found[name], value.detach()), name
    embedding, average = found["model.embed_tokens.weight"], trainer.average.chunks[0].embedding.word_embeddings.weight
    assert torch.equal(embedding, average) is use_ema


def test_export_says_that_there_is_no_average(saved, repo):
    tool, out = repo / "tools/export_hf.py", saved / "out"
    command = [sys.executable, tool, "--ckpt", saved / "without", "--out", out, "--ema"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, out.exists()) == (2, "", False)
    assert "keeps no average of the weights. Fix: train with optim.ema_decay" in done.stderr
    assert "Traceback" not in done.stderr
