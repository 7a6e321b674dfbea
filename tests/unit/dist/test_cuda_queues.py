"""CUDA_DEVICE_MAX_CONNECTIONS by layout."""

import os

import pytest

from r1train.config.load import load_config
from r1train.dist.init import CUDA_QUEUES, set_cuda_queues


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["experiment=v3_pretrain_h100_1024"], "32"),  # TP2 too, but the experts' all-to-all is overlapped
        (["experiment=v3_pretrain_h800_2048"], None),  # no TP, no such overlap
        (["experiment=v3_pretrain_h800_2048", "parallel.tp=2"], "1"),
        (["experiment=tiny", "parallel.tp=2"], None),  # no GPU
    ],
)
def test_queues_of_a_layout(monkeypatch, overrides, expected):
    monkeypatch.setenv(CUDA_QUEUES, "before")
    monkeypatch.delenv(CUDA_QUEUES)
    cfg = load_config([*overrides, "stage=pretrain"], check_files=False)
    set_cuda_queues(cfg.cluster, cfg.parallel)
    assert os.environ.get(CUDA_QUEUES) == expected


def test_the_environment_wins(monkeypatch):
    monkeypatch.setenv(CUDA_QUEUES, "4")
    cfg = load_config(["experiment=v3_pretrain_h100_1024", "stage=pretrain"], check_files=False)
    set_cuda_queues(cfg.cluster, cfg.parallel)
    assert os.environ[CUDA_QUEUES] == "4"
