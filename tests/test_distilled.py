"""What a LoRA won back by distillation, and the record of it that the docs quote."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from docs.make.distilled import LEVELS, distilled
from fps_flex.wan.dense import dense_attention
from fps_flex.wan.flow import add_noise, velocity_error
from fps_flex.wan.weights import load_wan, read_settings
from tests.helpers.commands import ROOT
from tests.helpers.lora_run import train_lora, write_base
from tests.helpers.tiny_run import tiny_checkpoint
from train.order import generator_of
from train.shapes import MovingShapes

RECORD = Path("docs/results/distilled-tiny-cpu.json")


def rows_of(run, out):
    distilled(str(run / "checkpoints/last.ckpt"), clips=3, seed=2, out=out)
    return {row["sigma"]: row for row in json.loads(out.read_text())["rows"]}


def test_a_lora_that_learnt_nothing_wins_nothing_back(tmp_path):
    base = write_base(tmp_path / "base")
    train_lora(tmp_path / "run", base, "--model.lr=1e-30")
    rows = rows_of(tmp_path / "run", tmp_path / "rows.json")
    assert [*rows] == [*LEVELS, "mean"]
    assert all(row["ratio"] == pytest.approx(1) and row["before"] > 0.01 for row in rows.values())


def test_errors_are_those_of_the_models_themselves(tmp_path):
    """At one level, by hand: of the base with the run's attention, and of the adapted weights, against dense."""
    base, file = write_base(tmp_path / "base"), tmp_path / "run/checkpoints/last.ckpt"
    module = train_lora(tmp_path / "run", base, "--model.lr=1e-2")
    rows = rows_of(tmp_path / "run", tmp_path / "rows.json")
    size = torch.load(file, weights_only=True)["fps_flex"]["clip"]
    drawn = MovingShapes(3, size["frames"], size["height"], size["width"], seed=1002)
    with torch.no_grad():
        latents = module.codec.encode(torch.stack([drawn[i]["video"] for i in range(3)]))
        text = module.text([drawn[i]["prompt"] for i in range(3)], torch.device("cpu"))
        noisy = add_noise(latents, torch.randn(latents.shape, generator=generator_of(2)), torch.full((3,), 0.7))
        attention = read_settings(file)[1]
        teacher, before, after = (
            load_wan(path, how).eval()(noisy, torch.full((3,), 700.0), text)
            for path, how in ((base, dense_attention()), (base, attention), (file, attention))
        )
    for name, velocity in (("before", before), ("after", after)):
        assert rows[0.7][name] == pytest.approx(velocity_error(velocity, teacher).mean().item(), rel=1e-5)
    for name in ("before", "after"):
        assert rows["mean"][name] == pytest.approx(sum(rows[x][name] for x in LEVELS) / len(LEVELS))


def test_a_run_without_a_lora_is_refused_in_a_line(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "run")
    done = subprocess.run([sys.executable, "-m", "docs.make.distilled", checkpoint], cwd=ROOT, capture_output=True)
    lines = done.stderr.decode().strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1 and "is of a run that trained no LoRA" in lines[0]


def test_the_docs_quote_the_record():
    mean = json.loads((ROOT / RECORD).read_text())["rows"][-1]
    page = (ROOT / "docs/train.md").read_text()
    assert f"it is {mean['before']:.4f} -> {mean['after']:.4f}, a factor of {mean['ratio']:.2f}" in page
    assert mean["ratio"] <= 0.5
