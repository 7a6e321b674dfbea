"""Tokenizers on the way out, the tools' command lines, dry runs and listings."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from r1train.convert.carry import tokenizer_of_run
from r1train.convert.exporter import ExportOptions, export_checkpoint
from r1train.convert.import_plan import Options
from r1train.convert.importer import import_checkpoint
from r1train.convert.report import import_estimate, list_folder, parse_size
from r1train.data.chat import prompt_tokens, response_tokens
from r1train.data.tokenizer import Tokenizer, is_our_tokenizer, save_tokenizer, train_tokenizer
from r1train.errors import CheckpointError

ONE = Options(workers=1)
EXPORT = ExportOptions(workers=1)


@pytest.fixture
def exported(models, make_hf, tmp_path) -> Path:
    """An export with our tokenizer in ours/, and one with the files of the import in carried/."""
    source = make_hf(models["llama"])
    (source / "generation_config.json").write_text('{"temperature": 0.6}')
    (source / "tokenizer.json").write_text('{"added_tokens": []}')
    (source / "merges.txt").write_text("a b")
    import_checkpoint(source, tmp_path / "run", ONE)
    save_tokenizer(train_tokenizer(["one plus one is two, ten and twenty"] * 9, 280), tmp_path / "tokenizer")
    export_checkpoint(tmp_path / "run", tmp_path / "ours", EXPORT, tokenizer=tmp_path / "tokenizer")
    export_checkpoint(tmp_path / "run", tmp_path / "carried", EXPORT)
    return tmp_path


def test_our_tokenizer_loads_in_transformers_with_the_chat_format(exported):
    from transformers import AutoTokenizer

    ours, theirs = Tokenizer.load(exported / "tokenizer"), AutoTokenizer.from_pretrained(exported / "ours")
    assert is_our_tokenizer(exported / "tokenizer") and not is_our_tokenizer(exported / "carried")
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)
    response = "<think>ten</think><answer>two</answer>"
    messages = [{"role": "user", "content": "one plus one?"}, {"role": "assistant", "content": response}]
    prompt = theirs.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
    assert list(prompt) == prompt_tokens(ours, "one plus one?")
    both = theirs.apply_chat_template(messages, return_dict=False)
    assert list(both) == prompt_tokens(ours, "one plus one?") + response_tokens(ours, response)
    config = json.loads((exported / "ours" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (0, 1, 2)
    assert json.loads((exported / "ours" / "generation_config.json").read_text())["eos_token_id"] == 1


def test_files_of_the_import_are_carried_along(exported):
    for name in ("generation_config.json", "tokenizer.json", "merges.txt"):
        assert (exported / "carried" / name).read_bytes() == (exported / "source" / name).read_bytes()
    config = json.loads((exported / "carried" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (3, 5)


def test_a_run_exports_the_tokenizer_of_its_data(exported, tmp_path):
    """A run that is trained from an import has no hf/ of its own; its data folder holds the model's tokenizer."""
    run, data = tmp_path / "trained", tmp_path / "data"
    shutil.copytree(tmp_path / "run" / "checkpoints", run / "checkpoints")
    model = yaml.safe_load((tmp_path / "run" / "model.yaml").read_text())
    (run / "resolved.yaml").write_text(yaml.safe_dump({"model": model, "data": {"dir": str(data)}}))
    assert tokenizer_of_run(run) is None
    shutil.copytree(exported / "carried", data / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors*"))
    export_checkpoint(run, tmp_path / "out", EXPORT)
    assert (tmp_path / "out" / "merges.txt").read_bytes() == (exported / "source" / "merges.txt").read_bytes()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 5


def tool(repo: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, repo / "tools" / arguments[0], *map(str, arguments[1:])]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_tools_end_with_2_and_one_message(repo, models, make_hf, tmp_path):
    source = make_hf(models["llama"], edit=lambda weights: weights.pop("model.norm.weight"))
    done = tool(repo, "import_hf.py", "--hf", source, "--out", tmp_path / "run")
    assert (done.returncode, done.stdout) == (2, "")
    assert "model.norm.weight [48] is missing" in done.stderr and "Traceback" not in done.stderr
    for arguments in (
        ("export_hf.py", "--ckpt", tmp_path, "--out", tmp_path / "out"),
        ("inspect_checkpoint.py", tmp_path),
    ):
        done = tool(repo, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "no finished checkpoint there" in done.stderr


def test_dry_run_of_v3_from_the_config_alone(repo, tmp_path):
    model = repo / "conf" / "model" / "deepseek_v3.yaml"
    done = tool(repo, "export_hf.py", "--dry-run", "--model", model, "--dtype", "fp8", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "91,991 tensors, 684,531,386,000 elements" in done.stdout
    assert (
        "writes 688.57 GB" in done.stdout and "time: about" in done.stdout and "memory: at most 8.0 GiB" in done.stdout
    )
    assert not (tmp_path / "out").exists()


def test_dry_run_of_an_import(models, make_hf, tmp_path):
    source = make_hf(models["deepseek"])
    stored = sum(t.elements * t.dtype.itemsize for t in list_folder(source)[0])
    with_weights = import_estimate(source, tmp_path / "run", ONE)
    assert f"{len(list_folder(source)[0])} tensors checked" in with_weights
    assert f"reads {stored / 1e9:.2f} GB" in with_weights
    for path in source.glob("*.safetensors"):
        path.unlink()
    assert "from config.json alone" in import_estimate(source, tmp_path / "run", ONE)
    assert not (tmp_path / "run").exists()


def test_listing_counts_parameters(repo, models, make_hf, tmp_path):
    """The same number on both sides, without MTP copies: 48 x 80 embedding and head, once each."""
    source = make_hf(models["moonlight"])
    step = import_checkpoint(source, tmp_path / "run", ONE)
    theirs, ours = list_folder(source)[0], list_folder(tmp_path / "run")[0]
    assert sum(t.elements for t in theirs) == sum(t.elements for t in ours if t.is_weight)
    done = tool(repo, "inspect_checkpoint.py", step, "--names", "expert_bias")
    total = sum(t.elements for t in ours)
    assert done.stdout.splitlines() == [
        f"checkpoint {step}",
        "marker: step 0, tokens 0, position 0",
        "     F32 [4]                      decoder.layers.1.mlp.router.expert_bias",
        "     F32 [4]                      decoder.layers.2.mlp.router.expert_bias",
        f"tensors: {len(ours) - 2} BF16, 2 F32",
        f"parameters: {total:,} in {len(ours)} tensors; 0 other tensors",
    ]
    (step / "_DONE").unlink()
    with pytest.raises(CheckpointError, match="no _DONE marker"):
        list_folder(step)


def test_sizes_on_the_command_line():
    assert [parse_size(text) for text in ("500M", "8G", "1.5GiB", "12")] == [500 * 2**20, 2**33, 3 * 2**29, 12]
