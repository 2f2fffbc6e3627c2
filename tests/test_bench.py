"""The bench in small, on whatever is here; and what importing the library brings along."""

import json
import subprocess
import sys

import pytest

from eval import bench


@pytest.mark.parametrize(("measure", "rows"), [(bench.train, 3), (bench.model, 5)], ids=["train", "model"])
def test_the_bench_runs_in_small_and_writes_what_it_measured(tmp_path, capsys, measure, rows):
    counted = {"steps": 2, "warmup": 1} if measure is bench.train else {"repeats": 2}
    measure("tiny", layers=1, out=tmp_path / "out/bench.json", **counted)
    held = json.loads((tmp_path / "out/bench.json").read_text())
    assert {"command", "device", "torch"} <= set(held) and len(held["rows"]) == rows
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == rows + 2
    for row in held["rows"]:
        assert len(row["all_step_seconds"]) == 2 and row["step_seconds"] > 0 and row["tokens"] == 320
        assert row["density"] == 1 if row["schedule"] in ("sdpa", "dense") else 0 < row["density"] < 1
    assert held["rows"][0]["schedule"] == "sdpa" and held["rows"][0]["speedup"] == 1


def test_importing_the_library_brings_torch_and_einops_only():
    heavy = "{'lightning', 'diffusers', 'transformers', 'safetensors', 'av', 'wandb', 'matplotlib', 'jsonargparse'}"
    code = f"import sys, fps_flex, fps_flex.weights; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
