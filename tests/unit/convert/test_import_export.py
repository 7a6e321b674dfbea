"""Hugging Face -> ours -> Hugging Face on small folders: bytes, FP8, refusals, continuing after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from r1train.convert import import_plan
from r1train.convert.exporter import ExportOptions, export_checkpoint
from r1train.convert.fp8 import dequantise
from r1train.convert.import_plan import Options
from r1train.convert.importer import ImportJob, import_checkpoint
from r1train.convert.names import entries, tied_head
from r1train.convert.torch_dist import TorchDistFolder
from r1train.errors import CheckpointError, R1TrainError
from r1train.log.checkpoints import MARKER

ONE = Options(workers=1, verify=True)
EXPORT = ExportOptions(workers=1, verify=True, max_shard_bytes=30_000)
FP8 = torch.float8_e4m3fn


def same(first: dict, second: dict) -> bool:
    """Names, types, shapes and bytes."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype
        and first[name].shape == second[name].shape
        and torch.equal(first[name].view(torch.uint8), second[name].view(torch.uint8))
        for name in first
    )


@pytest.fixture
def small_files(monkeypatch):
    """Several files and several blocks per tensor, as large models have them."""
    monkeypatch.setattr(import_plan, "_SMALLEST_FILE", 6_000)
    monkeypatch.setattr("r1train.convert.importer._BLOCK_ELEMENTS", 1_000)
    monkeypatch.setattr("r1train.convert.exporter._BLOCK_ELEMENTS", 1_000)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("name", ["deepseek", "moonlight", "v2_lite", "llama", "qwen"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_round_trip_is_byte_identical(models, make_hf, read_hf, tmp_path, name, dtype):
    source = make_hf(models[name], dtype=dtype)
    import_checkpoint(source, tmp_path / "run", ONE)
    done = export_checkpoint(tmp_path / "run", tmp_path / "out", replace(EXPORT, dtype=dtype))
    assert same(read_hf(source), read_hf(tmp_path / "out"))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    assert done.tensors == len(read_hf(source))
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "out"))
    assert before == after


def test_our_side_of_the_round_trip(models, make_hf, tmp_path, small_files):
    """Names, shapes and values in our checkpoint by hand: gate over up, experts along the first axis, fp32 bias."""
    weights: dict[str, torch.Tensor] = {}
    source = make_hf(models["deepseek"], edit=weights.update)
    step = import_checkpoint(source, tmp_path / "run", ONE)
    folder = TorchDistFolder(step)
    assert {key: tuple(t.size) for key, t in folder.tensors.items()} == {
        entry.key: entry.global_shape for entry in entries(models["deepseek"])
    }
    experts = folder.read("decoder.layers.2.mlp.experts.experts.linear_fc1.weight", (0, 0, 0), (4, 40, 48))
    prefix = "model.layers.2.mlp.experts.3."
    gate_up = torch.cat([weights[f"{prefix}gate_proj.weight"], weights[f"{prefix}up_proj.weight"]])
    assert torch.equal(experts[3], gate_up)
    bias = folder.read("mtp.layers.0.transformer_layer.mlp.router.expert_bias", (0,), (4,))
    assert bias.dtype == torch.float32
    assert torch.equal(bias, weights["model.layers.3.mlp.gate.e_score_correction_bias"])
    box = folder.read("mtp.layers.0.eh_proj.weight", (10, 50), (20, 30))
    assert torch.equal(box, weights["model.layers.3.eh_proj.weight"][10:30, 50:80])


def test_fp8_comes_back_as_it_was(models, make_hf, read_hf, tmp_path, small_files):
    """FP8 folder -> BF16 checkpoint -> FP8 folder: values bit for bit, scales to BF16's rounding; error is reported."""
    model = replace(models["deepseek"], hidden_size=144, ffn_hidden_size=200)  # blocks with ragged edges both ways
    import_checkpoint(make_hf(model), tmp_path / "first", ONE)
    done = export_checkpoint(tmp_path / "first", tmp_path / "fp8", replace(EXPORT, dtype=FP8))
    assert 0.02 < done.quantisation_error < 0.03
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    assert config["quantization_config"]["weight_block_size"] == [128, 128]
    import_checkpoint(tmp_path / "fp8", tmp_path / "second", ONE)
    again = export_checkpoint(tmp_path / "second", tmp_path / "fp8_again", replace(EXPORT, dtype=FP8))
    before, after = read_hf(tmp_path / "fp8"), read_hf(tmp_path / "fp8_again")
    assert again.quantisation_error < 0.005  # what BF16 rounds
    assert before.keys() == after.keys() and any(name.endswith("_scale_inv") for name in before)
    for name, values in before.items():
        if name.endswith("_scale_inv"):
            torch.testing.assert_close(after[name], values, rtol=2**-8, atol=0)
        else:
            assert torch.equal(after[name].float(), values.float()), name
    name = "model.layers.1.self_attn.o_proj.weight"
    expected = dequantise(before[name], before[f"{name}_scale_inv"], first_row=0, dtype=torch.bfloat16)
    folder = TorchDistFolder(tmp_path / "second" / "checkpoints" / "step_00000000")
    assert torch.equal(folder.read("decoder.layers.1.self_attention.linear_proj.weight", (0, 0), (144, 48)), expected)
    assert before["model.layers.3.eh_proj.weight"].dtype == before["lm_head.weight"].dtype == torch.bfloat16


def test_bf16_expert_bias_is_widened_and_stale_tensors_are_read_over(models, make_hf, read_hf, tmp_path):
    """As in Moonlight's files."""
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"

    def edit(weights):
        weights[bias] = weights[bias].bfloat16()
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    source = make_hf(models["moonlight"], edit=edit)
    import_checkpoint(source, tmp_path / "run", ONE)
    export_checkpoint(tmp_path / "run", tmp_path / "out", EXPORT)
    before, after = read_hf(source), read_hf(tmp_path / "out")
    assert before.keys() - after.keys() == {"model.layers.0.self_attn.rotary_emb.inv_freq"}
    assert after[bias].dtype == torch.float32 and torch.equal(after[bias], before[bias].float())


def test_mtp_copies_may_be_absent_but_not_different(models, make_hf, tmp_path):
    copy = "model.layers.3.shared_head.head.weight"
    without = make_hf(models["deepseek"], name="without", edit=lambda weights: weights.pop(copy))
    import_checkpoint(without, tmp_path / "run", ONE)
    different = make_hf(models["deepseek"], name="different", edit=lambda weights: weights[copy][70].add_(1))
    with pytest.raises(CheckpointError, match=f"{copy} has to equal lm_head.weight, and differs"):
        import_checkpoint(different, tmp_path / "run2", ONE)
    assert not (tmp_path / "run2").exists()


def test_tied_head_may_be_repeated(models, make_hf, tmp_path):
    name = "lm_head.weight"
    assert tied_head(models["qwen"]) == {name} and tied_head(models["llama"]) == set()
    embedding = "model.embed_tokens.weight"
    repeated = make_hf(models["qwen"], edit=lambda weights: weights.update({name: weights[embedding].clone()}))
    import_checkpoint(repeated, tmp_path / "run", ONE)
    other = make_hf(models["qwen"], name="other", edit=lambda weights: weights.update({name: weights[embedding] * 2}))
    with pytest.raises(CheckpointError, match="lm_head.weight has to equal model.embed_tokens.weight"):
        import_checkpoint(other, tmp_path / "run2", ONE)


def test_transformers_folder_without_mtp(models, make_hf, tmp_path):
    def edit(weights):
        for name in [name for name in weights if name.startswith("model.layers.3.")]:
            del weights[name]

    source = make_hf(models["deepseek"], edit=edit)
    with pytest.raises(CheckpointError, match="--drop-mtp imports without them"):
        import_checkpoint(source, tmp_path / "run", ONE)
    import_checkpoint(source, tmp_path / "run", replace(ONE, drop_mtp=True))
    full = make_hf(models["deepseek"], name="full")
    step = import_checkpoint(full, tmp_path / "run2", replace(ONE, drop_mtp=True))
    assert not [key for key in TorchDistFolder(step).tensors if key.startswith("mtp.")]


def test_all_that_does_not_fit_is_one_error_and_nothing_is_written(models, make_hf, tmp_path):
    def edit(weights):
        del weights["model.layers.1.mlp.experts.2.up_proj.weight"]
        weights["model.norm.weight"] = weights["model.norm.weight"][:40].clone()
        weights["model.layers.0.self_attn.q_proj.weight"] = torch.ones(2, 2)
        weights["lm_head.weight"] = torch.ones(80, 48, dtype=torch.int64)
        weights["model.layers.0.self_attn.o_proj.weight"] = torch.ones(48, 48).to(FP8)
        weights["model.layers.0.mlp.down_proj.weight"] = torch.ones(48, 136).to(FP8)
        weights["model.layers.0.mlp.down_proj.weight_scale_inv"] = torch.ones(1, 1)

    source = make_hf(models["deepseek"], edit=edit)
    with pytest.raises(CheckpointError) as error:
        import_checkpoint(source, tmp_path / "run", ONE)
    listed = [line.removeprefix("  - ") for line in str(error.value).splitlines() if line.startswith("  - ")]
    assert listed == [
        "model.layers.1.mlp.experts.2.up_proj.weight [20, 48] is missing",
        "lm_head.weight has dtype torch.int64, not a floating-point one",
        "model.layers.0.mlp.down_proj.weight_scale_inv has shape [1, 1] of torch.float32, not one float32 per block of "
        "128 x 128 of [48, 136]",
        "model.layers.0.self_attn.o_proj.weight is FP8 but model.layers.0.self_attn.o_proj.weight_scale_inv is missing",
        "model.layers.0.self_attn.q_proj.weight [2, 2] is not a tensor of this model",
        "model.norm.weight has shape [40], not [48]",
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["truncated", "header", "empty", "garbage"])
def test_damaged_file_is_named(models, make_hf, tmp_path, damage):
    source = make_hf(models["llama"])
    path = source / "model-00002-of-00002.safetensors"
    data = path.read_bytes()
    path.write_bytes(
        {"truncated": data[:-100], "header": data[:8] + b"x" * (len(data) - 8), "empty": b"", "garbage": b"\xff" * 99}[
            damage
        ]
    )
    with pytest.raises(CheckpointError, match="model-00002-of-00002.safetensors"):
        import_checkpoint(source, tmp_path / "run", ONE)
    assert not (tmp_path / "run").exists()


def test_file_that_the_index_names_is_missing(models, make_hf, tmp_path):
    source = make_hf(models["llama"])
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00003.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="model-00001-of-00003.safetensors: no such file, but the index names it"):
        import_checkpoint(source, tmp_path / "run", ONE)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickled_weights_are_refused(models, make_hf, tmp_path, name):
    source = make_hf(models["llama"])
    for path in source.glob("*.safetensors"):
        path.unlink()
    (source / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=f"pickled weights .{name}. are not read, because"):
        import_checkpoint(source, tmp_path / "run", ONE)


def test_killed_import_keeps_finished_files(models, make_hf, read_hf, tmp_path, small_files, monkeypatch):
    source, step = make_hf(models["deepseek"]), tmp_path / "run" / "checkpoints" / "step_00000000"
    run = ImportJob.run
    order: list[int] = []

    def until_third(self, group):
        order.append(group)
        if len(order) == 3:
            (self.out / "half.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        run(self, group)

    monkeypatch.setattr(ImportJob, "run", until_third)
    with pytest.raises(KeyboardInterrupt):
        import_checkpoint(source, tmp_path / "run", ONE)
    assert not (step / MARKER).exists()
    with pytest.raises(R1TrainError, match="no finished checkpoint"):
        export_checkpoint(tmp_path / "run", tmp_path / "out", EXPORT)
    kept = {path.name: path.stat().st_mtime_ns for path in step.glob("__*.distcp")}
    assert len(kept) == 2
    (step / sorted(kept)[0]).write_bytes(b"cut")  # a file that does not fit its record is made again

    with pytest.raises(CheckpointError, match="unfinished conversion of another source or with other options"):
        import_checkpoint(source, tmp_path / "run", replace(ONE, dtype=torch.float32))
    done: list[int] = []
    monkeypatch.setattr(ImportJob, "run", lambda self, group: (done.append(group), run(self, group)))
    import_checkpoint(source, tmp_path / "run", replace(ONE, max_memory_bytes=4 * 2**30))
    assert order[1] not in done or order[0] not in done
    assert len(done) == len(list(step.glob("__[0-9]*.distcp"))) - 1
    assert sorted(path.name for path in step.iterdir() if path.name.startswith(".") or path.suffix == ".tmp") == [
        ".metadata"
    ]
    export_checkpoint(tmp_path / "run", tmp_path / "out", EXPORT)
    assert same(read_hf(source), read_hf(tmp_path / "out"))
    with pytest.raises(CheckpointError, match="finished already"):
        import_checkpoint(source, tmp_path / "run", ONE)


SLOW_EXPORT = """
import sys, time
from pathlib import Path
from r1train.convert import exporter
class Slow(exporter.ExportJob):
    def run(self, group):
        super().run(group)
        time.sleep(0.3)
exporter.ExportJob = Slow
if __name__ == "__main__":
    exporter.export_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), exporter.ExportOptions(
        workers=2, max_shard_bytes=30_000))
"""


def test_export_killed_with_sigkill_leaves_no_process_and_continues(models, make_hf, read_hf, tmp_path, repo):
    """Two spawned workers; SIGKILL of the parent ends them; the second run writes only what is missing."""
    source, out = make_hf(models["deepseek"]), tmp_path / "out"
    import_checkpoint(source, tmp_path / "run", ONE)
    script = tmp_path / "slow.py"
    script.write_text(SLOW_EXPORT)
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    process = subprocess.Popen([sys.executable, script, tmp_path / "run", out], env=environment)
    deadline = time.monotonic() + 60
    while len(list((out / ".parts").glob("group_*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert psutil.wait_procs(family, timeout=60)[1] == []  # nobody writes any more
    first = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert not (out / "model.safetensors.index.json").exists() and not (out / "config.json").exists()
    recorded = len(list((out / ".parts").glob("group_*.json")))
    assert recorded >= 2
    export_checkpoint(tmp_path / "run", out, EXPORT)
    unchanged = [name for name, time_ns in first.items() if (out / name).stat().st_mtime_ns == time_ns]
    assert len(unchanged) >= 2
    assert same(read_hf(source), read_hf(out))
    assert not (out / ".parts").exists() and not list(out.glob("*.tmp"))


def test_verify_finds_a_changed_byte(models, make_hf, tmp_path, monkeypatch):
    source = make_hf(models["llama"])
    run = ImportJob.run

    def damage(self, group):
        run(self, group)
        path = self.out / f"__{group}_0.distcp"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    monkeypatch.setattr(ImportJob, "run", damage)
    with pytest.raises(CheckpointError, match="__0_0.distcp: its SHA-256 is not what was written"):
        import_checkpoint(source, tmp_path / "run", ONE)
    assert not (tmp_path / "run" / "checkpoints" / "step_00000000" / MARKER).exists()


def test_export_of_another_model_lists_what_differs(models, make_hf, tmp_path):
    import_checkpoint(make_hf(models["llama"]), tmp_path / "run", ONE)
    other = replace(models["llama"], ffn_hidden_size=100, num_layers=1)
    with pytest.raises(CheckpointError) as error:
        export_checkpoint(tmp_path / "run", tmp_path / "out", EXPORT, model=other)
    text = str(error.value)
    assert "decoder.layers.0.mlp.linear_fc1.weight has shape [272, 48], not [200, 48]" in text
    assert "decoder.layers.1.mlp.linear_fc2.weight [48, 136] is not of this model" in text
    assert not (tmp_path / "out").exists()


def test_memory_limit_that_nothing_fits_into(models, make_hf, tmp_path):
    with pytest.raises(CheckpointError, match="--max-memory of 100 MiB is too small.*Fix: at least"):
        import_checkpoint(make_hf(models["llama"]), tmp_path / "run", replace(ONE, max_memory_bytes=100 * 2**20))
    assert not (tmp_path / "run").exists()


def test_index_and_manifest(models, make_hf, tmp_path):
    """Every tensor is where the index says, total_size is the tensors' bytes, sums are of the files."""
    import hashlib

    import_checkpoint(make_hf(models["deepseek"]), tmp_path / "run", ONE)
    done = export_checkpoint(tmp_path / "run", tmp_path / "out", EXPORT)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    found = {path.name: load_file(path) for path in (tmp_path / "out").glob("*.safetensors")}
    assert {name: file for file, tensors in found.items() for name in tensors} == index["weight_map"]
    total = sum(tensor.nbytes for tensors in found.values() for tensor in tensors.values())
    assert index["metadata"]["total_size"] == total == done.bytes
    assert all(sum(t.nbytes for t in tensors.values()) <= 30_000 for tensors in found.values() if len(tensors) > 1)
    for folder in (tmp_path / "out", tmp_path / "run" / "checkpoints" / "step_00000000"):
        sums = json.loads((folder / "integrity.json").read_text())["files"]
        assert len(sums) >= 4
        for name, value in sums.items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == value


def test_single_file_without_index(models, tmp_path, make_hf, read_hf):
    source = make_hf(models["llama"])
    merged = read_hf(source)
    for path in source.glob("*.safetensors"):
        path.unlink()
    save_file(merged, source / "model.safetensors")
    import_checkpoint(source, tmp_path / "run", ONE)
    export_checkpoint(tmp_path / "run", tmp_path / "out", EXPORT)
    assert same(read_hf(source), read_hf(tmp_path / "out"))
    assert Path(tmp_path / "run" / "model.yaml").is_file()
