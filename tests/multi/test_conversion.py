"""Models that went through tools/import_hf.py and tools/export_hf.py compute what transformers computes, anywhere."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from assembly import assemble, load_ranks
from by_hand import losses
from safetensors.torch import load_file, save_file
from tiny import MODEL

from r1train.convert.export_plan import hf_tensors, model_of_run
from r1train.convert.exporter import ExportOptions, export_checkpoint
from r1train.convert.hf_export_config import model_to_hf
from r1train.convert.import_plan import Options
from r1train.convert.importer import import_checkpoint
from r1train.convert.live import hf_weights
from r1train.convert.names import AnyModel, entries

WORKER = Path(__file__).parent / "worker"
NAMES = (
    *("v3_yarn", "v3_plain_three_dense", "moonlight", "v2_lite", "v2_low_rank"),
    *("llama", "llama_tied", "qwen2", "qwen2_untied"),
)
_EVERYWHERE = ("v3_yarn", "v3_plain_three_dense", "moonlight", "v2_low_rank", "mtp")
# Every feature in every layout; experts cannot be spread where there are none (conversion.py chooses the same).
CASES = [
    *(("single", name) for name in (*NAMES, "mtp")),
    *((layout, name) for layout in ("ep2", "pp2", "tp2", "pp2_ep2") for name in _EVERYWHERE),
    *((layout, name) for layout in ("pp2", "tp2") for name in ("llama", "qwen2")),
]
LAUNCHES = ((1, "single"), (2, "ep2,pp2,tp2"), (4, "pp2_ep2"))


@dataclass(frozen=True)
class Shard:
    """A whole tensor of ours, or one expert's, as convert/live.py takes it."""

    key: str
    global_offset: tuple[int, ...]
    data: torch.Tensor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, warm: Callable[..., str], repo: Path) -> Path:
    """Models, their imports and exports, and what transformers and we compute of them, per layout and rank."""
    out = tmp_path_factory.mktemp("conversion")
    python(WORKER / "conversion_transformers.py", "make", out)
    for name in NAMES:
        place = out / name
        if name == NAMES[0]:  # as a user calls the tools; for the others the functions behind them
            python(repo / "tools/import_hf.py", "--hf", place / "hf", "--out", place / "run", "--workers", "2")
            arguments = ("--ckpt", place / "run", "--out", place / "out", "--dtype", "fp32", "--workers", "2")
            python(repo / "tools/export_hf.py", *arguments)
        else:
            import_checkpoint(place / "hf", place / "run", Options(workers=1))
            export_checkpoint(place / "run", place / "out", ExportOptions(workers=1, dtype=torch.float32))
    make_mtp_folder(out / "mtp" / "hf")
    import_checkpoint(out / "mtp" / "hf", out / "mtp" / "run", Options(workers=1))
    for processes, layouts in LAUNCHES:
        warm(WORKER / "main.py", processes, out, "conversion", layouts, timeout_s=400)
    python(WORKER / "conversion_transformers.py", "exported", out)
    return out


@pytest.fixture(scope="module")
def converted(folder: Path) -> dict:
    """Per model: logits of transformers before and after, and the weights in files and in our memory."""
    ours = load_ranks(folder, "conversion", "single")[0]
    return {
        name: {
            "transformers": torch.load(folder / name / "transformers.pt"),
            "weights": ours[name]["weights"],
            "files": read_files(folder / name / "hf"),
            "exported": torch.load(folder / name / "exported.pt"),
            "model_type": json.loads((folder / name / "out" / "config.json").read_text())["model_type"],
        }
        for name in NAMES
    } | {"mtp": {"weights": ours["mtp"]["weights"], "files": read_files(folder / "mtp" / "hf")}}


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict:
    """Per model: logits, loss and gradients under Hugging Face's names, of transformers or, for MTP, by hand."""
    found = {
        name: {
            "logits": torch.load(folder / name / "transformers.pt"),
            "loss": torch.load(folder / name / "loss.pt"),
            "gradients": {
                key: gradient
                for key, gradient in read_files(folder / name / "gradients").items()
                if not key.endswith("e_score_correction_bias")
            },
        }
        for name in NAMES
    }
    return found | {"mtp": mtp_by_hand(read_files(folder / "mtp" / "hf"), torch.load(folder / "windows.pt"))}


def mtp_by_hand(files: dict[str, torch.Tensor], windows: torch.Tensor) -> dict:
    """The step that conversion.py takes, with its weight of the MTP loss, in plain torch."""
    weights = {key: tensor.requires_grad_(not key.endswith("bias")) for key, tensor in files.items()}
    logits, (main, mtp) = losses(weights, windows % MODEL.vocab_size, MODEL)
    (main + 0.3 * mtp).backward()
    gradients = {key: weight.grad for key, weight in weights.items() if weight.grad is not None}
    logits = torch.stack(logits).detach()
    return {"logits": logits, "loss": main.item(), "mtp_loss": mtp.item(), "gradients": gradients}


def under_hf_names(tensors: dict[str, torch.Tensor], model: AnyModel) -> dict[str, torch.Tensor]:
    """Whole tensors of ours (gradients) under Hugging Face's names, through the table."""
    shards = [
        Shard(entry.key, (0,) * len(entry.shape), tensors[entry.key])
        if entry.expert is None
        else Shard(entry.key, entry.offset(0), tensors[entry.key][entry.expert])
        for entry in entries(model)
        if entry.key in tensors
    ]
    return dict(hf_weights(entries(model), shards))


def make_mtp_folder(folder: Path) -> None:
    """The model of the other multi-process tests, which has an MTP layer: transformers cannot make one."""
    generator = torch.Generator().manual_seed(2)  # every expert gets tokens of the test's windows, so a gradient
    weights = {}
    for name, shape in ((tensor.name, tensor.shape) for tensor in hf_tensors(entries(MODEL), torch.float32)):
        noise = torch.randn(shape, generator=generator)
        weights[name] = 1.0 + 0.2 * noise if "norm" in name else 0.15 * noise
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


@pytest.mark.parametrize(("layout", "name"), CASES)
def test_imported_model_has_transformers_logits(folder: Path, expected: dict, layout: str, name: str):
    """fp32, 2 x 48 tokens; logits of the order of 1, so 1e-4 is a hundredth of a per cent."""
    ranks = [rank[name]["logits"] for rank in load_ranks(folder, "conversion", layout)]
    wanted = expected[name]["logits"]
    assert wanted.std() > 0.3
    assert {sequence for rank in ranks for sequence in rank} == {0, 1}
    assert all((ours - wanted[i]).abs().max() < 1e-4 for rank in ranks for i, ours in rank.items())


@pytest.mark.parametrize(("layout", "name"), CASES)
def test_imported_model_has_transformers_gradients(folder: Path, expected: dict, layout: str, name: str):
    """One step's gradient of every parameter, relative to the largest entry of each tensor: 5e-6 where measured."""
    ranks = [rank[name] for rank in load_ranks(folder, "conversion", layout)]
    wanted = expected[name]
    assert [rank["loss"] for rank in ranks] == pytest.approx([wanted["loss"]] * len(ranks), rel=1e-5)
    whole = assemble([rank["gradients"] for rank in ranks], tolerance=1e-4)
    found = under_hf_names(whole, model_of_run(folder / name / "run"))
    assert found.keys() == wanted["gradients"].keys()
    assert all(gradient.abs().max() > 0 for gradient in wanted["gradients"].values())
    worst = {
        key: float((found[key] - gradient).abs().max() / gradient.abs().max())
        for key, gradient in wanted["gradients"].items()
    }
    assert {key: error for key, error in worst.items() if not error <= 1e-4} == {}


def test_mtp_loss_is_that_of_the_report(folder: Path, expected: dict):
    """The weights of the MTP layer came from the files, embedding's half of eh_proj first; not a number of ours."""
    found = load_ranks(folder, "conversion", "single")[0]["mtp"]["mtp_loss"]
    assert found == pytest.approx(expected["mtp"]["mtp_loss"], rel=1e-5)
    assert abs(found - expected["mtp"]["loss"]) > 0.01
    swapped = read_files(folder / "mtp" / "hf")
    projection = swapped["model.layers.3.eh_proj.weight"]
    swapped["model.layers.3.eh_proj.weight"] = torch.cat(projection.chunk(2, dim=1)[::-1], dim=1)
    assert abs(found - mtp_by_hand(swapped, torch.load(folder / "windows.pt"))["mtp_loss"]) > 0.01


def test_experts_of_closed_groups_are_never_chosen(folder: Path):
    """Where sigmoid plus bias is negative, a mask of 0 would rank experts of closed groups before those of open ones.

    transformers masked with 0 (as DeepSeek's first files did) up to its issue 45440 of April 2026; the installed
    version masks with minus infinity, as we do.
    """
    case = torch.load(folder / "gate.pt")
    choice = torch.sigmoid(case["hidden"] @ case["weight"].T) + case["bias"]
    groups = choice.unflatten(-1, (8, 4)).topk(2).values.sum(-1).topk(4).indices
    closed = torch.ones(16, 8, dtype=torch.bool).scatter(1, groups, False).repeat_interleave(4, dim=1)
    chosen = {
        mask: choice.masked_fill(closed, mask).topk(8).indices.sort().values.tolist() for mask in (0.0, -torch.inf)
    }
    assert load_ranks(folder, "conversion", "single")[0]["gate"] == chosen[-torch.inf]
    assert case["transformers"].tolist() == chosen[-torch.inf]
    for token, experts in enumerate(chosen[0.0]):
        assert sum(closed[token, experts].tolist()) == 4
    assert not any(closed[token, experts].any() for token, experts in enumerate(chosen[-torch.inf]))


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
