"""What a Wan is trained on: filled tensor by tensor, in little memory, and refused where it can't be trained so."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from fps_flex import FPSAttention
from fps_flex.wan import WanConfig
from fps_flex.wan.base import build_base, check_base
from fps_flex.wan.weights import build_empty
from tests.helpers.adapted import ATTENTION, CONFIG, make_state
from tests.helpers.commands import run_apart

CPU = torch.device("cpu")
LARGE = WanConfig(dim=512, ffn_dim=2048, heads=4, layers=6)
MEASURE = """
import sys
import safetensors, torch
from fps_flex import FPSAttention
from fps_flex.wan.base import build_base
from fps_flex.wan.weights import open_weights
def peak():  # of this program: ru_maxrss begins with that of the process that started it
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
weights = open_weights(sys.argv[1])
torch.randn(64, 64) @ torch.randn(64, 64)
before = peak()
model = build_base(weights.config, FPSAttention(), weights.stream(), sys.argv[2], "bf16")
print(peak() - before, sum(x.nbytes for x in model.state_dict().values()))
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A release of 118 MB in four files; not to be changed."""
    folder = tmp_path_factory.mktemp("shards")
    state = {name: torch.randn(x.shape) for name, x in build_empty(LARGE, FPSAttention()).state_dict().items()}
    names, where = list(state), {}
    for i in range(4):
        file = f"model-{i + 1:05}-of-00004.safetensors"
        part = {name: state[name] for name in names[i::4]}
        save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text(json.dumps({"num_heads": 4}))
    return folder


@pytest.mark.parametrize("base", ["fp32", "bf16", "fp8"])
def test_it_is_streamed(shards, base):
    """The model in its own dtype, and of what is read less than half of a shard beside it."""
    # what is freed goes back at once, as it does of matrices above glibc's 32 MB, and not when it likes
    done = run_apart("-c", MEASURE, shards, base, OMP_NUM_THREADS="1", MALLOC_MMAP_THRESHOLD_="65536")
    assert done.returncode == 0, done.stderr
    grown, model = map(int, done.stdout.split())
    shard = max(file.stat().st_size for file in shards.glob("*.safetensors"))
    assert 0.8 * model < grown < model + shard / 2, (grown / 1e6, model / 1e6, shard / 1e6)


def test_an_fp8_base_is_a_quarter_of_an_fp32_one():
    sizes = {
        base: sum(x.nbytes for name, x in model.state_dict().items() if re.match(r"blocks.*\.weight", name))
        for base in ("fp32", "bf16", "fp8")
        for model in [build_base(CONFIG, ATTENTION, make_state().items(), base, "bf16")]
    }
    assert sizes["bf16"] < 0.52 * sizes["fp32"] and sizes["fp8"] < 0.28 * sizes["fp32"]


def test_a_number_that_is_not_finite_is_named_in_any_base():
    for base in ("fp32", "bf16", "fp8"):
        state = make_state()
        state["blocks.1.ffn.2.weight"][0, 0] = float("nan")
        with pytest.raises(ValueError, match="^blocks.1.ffn.2.weight holds a value of nan, expected finite weights"):
            build_base(CONFIG, ATTENTION, state.items(), base, "bf16")


def test_torchao_is_asked_for_where_it_computes(monkeypatch):
    """Not beside a base in fp8, whose codes are multiplied as they are."""
    for module in ("base", "linears"):
        monkeypatch.setattr(f"fps_flex.wan.{module}.has_float8", lambda device: True)
    monkeypatch.setattr("fps_flex.wan.linears.find_spec", lambda name: None)
    for base, linears in (("fp8", "fp8"), ("fp8", "fp8-ffn"), ("bf16", "bf16"), ("fp32", "bf16")):
        check_base(base, linears, True, CPU)
    for base, linears in (("bf16", "fp8"), ("fp32", "fp8-ffn")):
        with pytest.raises(ValueError, match=f"^linears {linears} need torchao to train: pip install torchao, or use"):
            check_base(base, linears, True, CPU)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("fp16", "bf16", True), "base is 'fp16', expected one of fp32, bf16, fp8"),
        (("fp32", "int8", True), "linears are 'int8', expected bf16, fp8-ffn or fp8"),
        (("fp32", "fp8", True), "linears fp8 need a GPU with float8 (compute capability 8.9 or later): use bf16"),
        (("fp8", "bf16", False), "base fp8 is of frozen weights, and these are trained: use fp32 or bf16, or train a"),
        (("fp8", "bf16", True), "base fp8 needs a GPU with float8 (compute capability 8.9 or later): use bf16"),
    ],
)
def test_what_cannot_be_trained_so_is_one_line(arguments, line):
    with pytest.raises(ValueError) as error:
        check_base(*arguments, CPU)
    assert str(error.value).startswith(line)
