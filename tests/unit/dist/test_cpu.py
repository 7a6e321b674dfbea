"""The CPU stand-ins: their version guard, and what they answer."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from r1train.errors import EnvironmentProblem


def test_another_megatron_core_is_refused(monkeypatch):
    from r1train.dist import cpu

    monkeypatch.setattr(importlib.metadata, "version", {"megatron-core": "0.20.0"}.__getitem__)
    with pytest.raises(EnvironmentProblem) as caught:
        cpu.check_megatron_version()
    message = str(caught.value)
    assert message.startswith(
        "megatron-core 0.20.0 is installed, but the CPU stand-ins (r1train/dist/cpu.py) fit 0.19.2"
    )
    assert "Fix: pip install megatron-core==0.19.2" in message


def test_stand_ins_fit_the_installed_version():
    from r1train.dist import cpu

    assert importlib.metadata.version("megatron-core") == cpu.MEGATRON_VERSION
    cpu.check_megatron_version()


CHECKS = """
import torch
from r1train.dist import cpu
assert torch.FloatTensor is not None and torch.zeros(1).type() == "torch.FloatTensor"
cpu.install()
patched = torch.Tensor.to
cpu.install()
assert torch.Tensor.to is patched  # a second call changes nothing
assert torch.zeros(2, device="cuda").device.type == "cpu"
assert torch.tensor([1.5], device=torch.device("cuda", 0)).tolist() == [1.5]
assert torch.empty_like(torch.ones(3), device=0).shape == (3,)
x = torch.ones(2)
assert x.cuda() is x and x.to("cuda").device.type == "cpu" and x.to(torch.float64).dtype == torch.float64
assert x.to(device="cuda:0", dtype=torch.int64).tolist() == [1, 1]
assert x.type() == "torch.cuda.FloatTensor" and x.type(torch.int32).dtype == torch.int32
assert torch.cuda.current_device() == torch.device("cpu") and torch.cuda.device_count() == 1
with torch.cuda.stream(torch.cuda.Stream()):
    assert torch.cuda.Event().query()
assert torch.compile(abs) is abs and torch.compile(dynamic=True)(abs) is abs
state = torch.cuda.get_rng_state()
first = torch.rand(3)
torch.cuda.set_rng_state(state)
assert torch.rand(3).equal(first)
from megatron.core.transformer.moe import token_dispatcher
assert token_dispatcher.maybe_move_tensor_to_cpu(torch.tensor([2, 3]), as_numpy=True).tolist() == [2, 3]
assert token_dispatcher.maybe_move_tensor_to_cpu(None, as_numpy=True) is None
"""


REFUSED = """
import importlib.metadata
import torch
from r1train.dist import cpu
from r1train.errors import EnvironmentProblem
importlib.metadata.version = {"megatron-core": "0.18.1"}.__getitem__
before = torch.compile, torch.Tensor.to, torch.cuda.device_count
try:
    cpu.install()
except EnvironmentProblem:
    assert before == (torch.compile, torch.Tensor.to, torch.cuda.device_count)  # nothing was replaced
else:
    raise AssertionError("accepted")
"""


def run(script: str, repo) -> None:
    done = subprocess.run([sys.executable, "-c", script], cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_install_refuses_another_version_before_it_replaces_anything(repo):
    run(REFUSED, repo)


FAKES = {
    "merely there": "import torch\n",
    "broken": "raise RuntimeError('libcuda.so.1: cannot open shared object file')\n",  # no ImportError
}
# What megatron-core believes, from modules that decide by different imports, and that its optimizer is torch's.
WITHOUT = """
import sys
import torch
{before}
from r1train.dist import cpu
cpu.install()
import importlib.util
assert importlib.util.find_spec("transformer_engine") is None
from megatron.core.extensions import transformer_engine as extension
from megatron.core import fp8_utils, optimizer
from megatron.core.utils import get_te_version
import r1train.model.spec
assert not extension.HAVE_TE and not fp8_utils.HAVE_TE and str(get_te_version()) == "0.0.0"
assert optimizer.Adam is torch.optim.AdamW, optimizer.Adam
"""


@pytest.mark.parametrize("kind", FAKES)
@pytest.mark.parametrize("before", ("", "import transformer_engine.pytorch.optimizers"))
def test_installed_transformer_engine_is_not_seen_on_cpu(tmp_path, repo, kind, before):
    """A package of that name, and of apex, that would be taken if it were seen."""
    if kind == "broken" and before:
        before = "try:\n    import transformer_engine\nexcept RuntimeError:\n    pass"
    pytorch = tmp_path / "transformer_engine" / "pytorch"
    pytorch.mkdir(parents=True)
    (pytorch.parent / "__init__.py").write_text(f"__version__ = '2.9.0'\n{FAKES[kind]}")
    (pytorch / "__init__.py").touch()
    (pytorch / "optimizers.py").write_text(
        "class FusedAdam: ...\nclass FusedSGD: ...\nmulti_tensor_applier = multi_tensor_scale = None\n"
    )
    apex = tmp_path / "apex" / "optimizers"
    apex.mkdir(parents=True)
    (apex.parent / "__init__.py").touch()
    (apex / "__init__.py").write_text("class FusedAdam: ...\nclass FusedSGD: ...\n")
    search = os.pathsep.join(filter(None, [str(tmp_path), str(repo), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", WITHOUT.format(before=before)]
    environment = {**os.environ, "PYTHONPATH": search}
    done = subprocess.run(command, env=environment, cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_answers(repo):
    """In a process of its own, because the stand-ins stay for the life of a process."""
    run(CHECKS, repo)
