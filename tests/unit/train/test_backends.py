"""What is said about slow choices, and what takes DeepEP's place."""

import logging
import sys
from types import SimpleNamespace

import pytest

from r1train.dist import probe
from r1train.train import backends


def run(*, dispatcher="alltoall", selected="alltoall", ep=8, precision="bf16", nodes=8):
    cfg = SimpleNamespace(
        parallel=SimpleNamespace(dispatcher=dispatcher, ep=ep),
        cluster=SimpleNamespace(processes_per_node=nodes),
        optim=SimpleNamespace(precision=precision),
    )
    return cfg, SimpleNamespace(type="cuda"), SimpleNamespace(moe_token_dispatcher_type=selected)


@pytest.fixture(autouse=True)
def with_apex(monkeypatch):
    monkeypatch.setattr(backends, "apex_fusion", lambda: True)


def test_flex_falls_back_with_a_line(monkeypatch):
    monkeypatch.setattr(probe, "deep_ep_problem", lambda: "No module named 'deep_ep'")
    assert probe.usable_dispatcher("flex") == "alltoall"
    assert backends.slow_choices(*run(dispatcher="flex")) == [
        "dispatcher flex falls back to alltoall: DeepEP cannot be used (No module named 'deep_ep')"
    ]


def test_flex_stays_where_deep_ep_works(monkeypatch):
    monkeypatch.setattr(probe, "deep_ep_problem", lambda: None)
    assert probe.usable_dispatcher("flex") == "flex"
    assert probe.usable_dispatcher("alltoall") == "alltoall"
    assert backends.slow_choices(*run(dispatcher="flex", selected="flex")) == []


def test_deep_ep_is_probed_by_importing_it():
    assert "deep_ep" in probe.deep_ep_problem()


def test_one_line_per_slow_choice(monkeypatch):
    monkeypatch.setattr(backends, "apex_fusion", lambda: False)
    monkeypatch.setenv("NVTE_FUSED_ATTN", "0")
    monkeypatch.setenv("NVTE_FLASH_ATTN", "0")
    lines = backends.slow_choices(*run(ep=64, precision="fp32"))
    assert [line.split()[0] for line in lines] == ["dispatcher", "NVTE_FUSED_ATTN=0", "precision", "apex"]


def test_nothing_is_slow_on_a_cpu_that_has_no_choice():
    cfg, _, config = run(precision="fp32", ep=64)
    assert backends.slow_choices(cfg, SimpleNamespace(type="cpu"), config) == []


@pytest.mark.parametrize(
    ("fp8", "bf16", "name"), [("e4m3", True, "fp8 e4m3 blockwise"), (None, True, "bf16"), (None, False, "fp32")]
)
def test_description_names_what_computes(fp8, bf16, name):
    core = type("TEDotProductAttention", (), {})()
    layer = SimpleNamespace(self_attention=SimpleNamespace(core_attention=core))
    config = SimpleNamespace(
        fp8=fp8,
        fp8_recipe="blockwise",
        bf16=bf16,
        num_moe_experts=8,
        moe_token_dispatcher_type="flex",
        moe_grouped_gemm=True,
        gradient_accumulation_fusion=True,
    )
    module = SimpleNamespace(config=config, decoder=SimpleNamespace(layers=[layer]))
    assert backends.describe(SimpleNamespace(type="cuda"), [module]) == {
        "attention": "TEDotProductAttention (cuDNN or FlashAttention)",
        "GEMM": name,
        "dispatcher": "flex",
        "experts": "grouped GEMM",
        "weight gradients": "fused",
    }


def test_lines_go_to_the_log_of_the_first_rank(monkeypatch, caplog):
    monkeypatch.setattr(backends, "describe", lambda *_: {"attention": "x"})
    monkeypatch.setattr(backends, "slow_choices", lambda *_: ["slow"])
    with caplog.at_level(logging.INFO, logger=backends.__name__):
        backends.report_backends(None, None, [SimpleNamespace(config=None)])
    assert [record.getMessage() for record in caplog.records] == ["backends: attention: x", "slow"]


@pytest.mark.parametrize(
    ("chosen", "kernel", "level"),
    [
        ({"use_flash_attention": False, "use_fused_attention": True, "use_unfused_attention": False}, "cuDNN", "INFO"),
        ({"use_flash_attention": True, "use_fused_attention": False}, "FlashAttention", "INFO"),
        ({"use_flash_attention": False, "use_unfused_attention": True}, "unfused", "WARNING"),
        (None, "not known", "INFO"),
    ],
)
def test_attention_kernel_is_said_after_the_first_step(chosen, kernel, level, monkeypatch, caplog):
    """The names are those of Transformer Engine 2.20.2; a version without the table is no error."""
    engine = SimpleNamespace() if chosen is None else SimpleNamespace(_attention_backends=chosen)
    monkeypatch.setitem(sys.modules, backends._TE_CHOICE, engine)
    monkeypatch.setattr(backends.importlib, "import_module", lambda name: sys.modules[name])
    with caplog.at_level(logging.INFO, logger=backends.__name__):
        backends.report_attention(SimpleNamespace(type="cuda"))
        backends.report_attention(SimpleNamespace(type="cpu"))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (level, f"attention kernel of the first step: {kernel}")
    ]
