"""How many threads a process has: few beside a GPU, and on a CPU as many as without us."""

import os
from types import SimpleNamespace

import pytest
import torch

from train.callbacks import KeepThreads
from train.common.work import find_device, threads_beside

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def eight_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("device", "environment", "threads"),
    [
        (GPU, {}, 2),
        (GPU, {"OMP_NUM_THREADS": ""}, 2),
        (GPU, {"OMP_NUM_THREADS": "16"}, None),
        (GPU, {"MKL_NUM_THREADS": "16"}, None),
        (CPU, {}, None),
        (CPU, {"OMP_NUM_THREADS": "16"}, None),
    ],
)
def test_few_beside_a_gpu_unless_they_are_asked_for(device, environment, threads):
    assert threads_beside(device, environment) == threads


def test_no_more_than_there_were():
    torch.set_num_threads(1)
    assert threads_beside(GPU, {}) == 1


@pytest.mark.parametrize(("gpus", "asked", "threads"), [(1, None, 2), (1, "8", 8), (0, None, 8), (0, "8", 8)])
def test_finding_the_device_sets_them_and_leaves_the_environment(monkeypatch, gpus, asked, threads):
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    environment = dict(os.environ)
    assert find_device() == (GPU if gpus else CPU)
    assert torch.get_num_threads() == threads and dict(os.environ) == environment


@pytest.mark.parametrize(("device", "threads"), [(GPU, 8), (CPU, 32)])
def test_they_stay_where_lightning_starts_the_processes(device, threads):
    keep = KeepThreads()
    torch.set_num_threads(32)  # as its launcher does
    keep.setup(SimpleNamespace(strategy=SimpleNamespace(root_device=device)), None, "fit")
    assert torch.get_num_threads() == threads
