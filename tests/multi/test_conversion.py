"""Models that went through tools/import_hf.py and tools/export_hf.py compute what transformers computes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import MODEL

from r1train.convert.export_plan import hf_tensors
from r1train.convert.exporter import ExportOptions, export_checkpoint
from r1train.convert.hf_export_config import model_to_hf
from r1train.convert.import_plan import Options
from r1train.convert.importer import import_checkpoint
from r1train.convert.names import entries

WORKER = Path(__file__).parent / "worker"
NAMES = (
    *("v3_yarn", "v3_plain_three_dense", "moonlight", "v2_lite", "v2_low_rank"),
    *("llama", "llama_tied", "qwen2", "qwen2_untied"),
)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, torchrun: Callable[..., str], repo: Path) -> dict:
    """Per model: logits of transformers, of ours after the import, of transformers after the export."""
    out = tmp_path_factory.mktemp("conversion")
    python(WORKER / "conversion_transformers.py", "make", out)
    for name in NAMES:
        folder = out / name
        if name == NAMES[0]:  # as a user calls the tools; for the others the functions behind them
            python(repo / "tools/import_hf.py", "--hf", folder / "hf", "--out", folder / "run", "--workers", "2")
            arguments = ("--ckpt", folder / "run", "--out", folder / "out", "--dtype", "fp32", "--workers", "2")
            python(repo / "tools/export_hf.py", *arguments)
        else:
            import_checkpoint(folder / "hf", folder / "run", Options(workers=1))
            export_checkpoint(folder / "run", folder / "out", ExportOptions(workers=1, dtype=torch.float32))
    make_mtp_folder(out / "mtp" / "hf")
    import_checkpoint(out / "mtp" / "hf", out / "mtp" / "run", Options(workers=1))
    torchrun(WORKER / "main.py", 1, out, "conversion", "single", timeout_s=400)
    python(WORKER / "conversion_transformers.py", "exported", out)
    ours = torch.load(out / "conversion.single.0.pt")
    return {
        name: {
            "transformers": torch.load(out / name / "transformers.pt"),
            "ours": ours[name]["logits"],
            "weights": ours[name]["weights"],
            "files": read_files(out / name / "hf"),
            "exported": torch.load(out / name / "exported.pt"),
            "model_type": json.loads((out / name / "out" / "config.json").read_text())["model_type"],
        }
        for name in NAMES
    } | {"mtp": {"weights": ours["mtp"]["weights"], "files": read_files(out / "mtp" / "hf")}}


def make_mtp_folder(folder: Path) -> None:
    """The model of the other multi-process tests, which has an MTP layer: transformers cannot make one."""
    generator = torch.Generator().manual_seed(1)
    weights = {
        tensor.name: torch.randn(tensor.shape, generator=generator)
        for tensor in hf_tensors(entries(MODEL), torch.float32)
    }
    weights["model.layers.3.embed_tokens.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.3.shared_head.head.weight"] = weights["lm_head.weight"].clone()
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model_to_hf(MODEL, dtype="float32")))


def read_files(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def python(*command: object) -> None:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("name", NAMES)
def test_imported_model_has_transformers_logits(converted: dict, name: str):
    """fp32, 2 x 48 tokens; logits of the order of 1, so 1e-4 is a hundredth of a per cent."""
    expected, ours = converted[name]["transformers"], converted[name]["ours"]
    assert expected.std() > 0.3
    assert (ours - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_exported_model_has_the_same_logits(converted: dict, name: str):
    assert torch.equal(converted[name]["exported"], converted[name]["transformers"])
    kind = {"v3": "deepseek_v3", "moonlight": "deepseek_v3", "v2": "deepseek_v2"}.get(name.split("_")[0])
    assert converted[name]["model_type"] == (kind or name.split("_")[0])


def test_models_differ(converted: dict):
    """The comparison would notice the wrong model: no two of these have the same logits."""
    kinds = [converted[name]["transformers"] for name in NAMES]
    assert all((a - b).abs().max() > 0.1 for i, a in enumerate(kinds) for b in kinds[:i])


@pytest.mark.parametrize("name", [*NAMES, "mtp"])
def test_weights_in_memory_are_those_of_the_files(converted: dict, name: str):
    """The live model under Hugging Face's names (convert/live.py), every tensor once, bit for bit; copies left out."""
    files, weights = converted[name]["files"], converted[name]["weights"]
    copies = (
        {"model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight"} if name == "mtp" else set()
    )
    assert weights.keys() == files.keys() - copies
    assert [key for key in weights if not torch.equal(weights[key], files[key])] == []
