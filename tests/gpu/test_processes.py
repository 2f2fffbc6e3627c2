"""train.fit on two GPUs by DDP: it logs its steps, and ends in one line where a step fails."""

import csv

import pytest
import torch

from tests.helpers.commands import run_apart

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def two_gpus():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")


def fit(run, *options):
    words = ["-m", "train.fit", "--config=configs/tiny.yaml", f"--run={run}", "--trainer.accelerator=gpu"]
    words += ["--trainer.devices=2", "--parallel.shard=false", "--trainer.log_every_n_steps=1"]
    return run_apart(*words, "--trainer.max_steps=3", "--sample.steps=1", *options, timeout=300)


def test_the_log_knows_each_clip_by_its_noise_level(tmp_path):
    """Which decides on the pass, and stays on the CPU."""
    process = fit(tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]
    with (tmp_path / "logs/version_0/metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("regime/0/share")]
    assert len(rows) == 3
    assert all(sum(float(row[f"regime/{i}/share"]) for i in range(3)) == pytest.approx(1) for row in rows)


def test_a_step_that_fails_ends_all_in_its_own_words(tmp_path):
    process = fit(tmp_path, "--model.lr=1e30", "--model.warmup_steps=0")
    lines = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert process.returncode == 1 and lines and all("is nan at step" in line for line in lines), process.stderr[-2000:]
