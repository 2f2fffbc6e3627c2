"""Options of the Triton kernels by card: which are set, and that by the recorded figures each fits."""

import json
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from docs.make.cards import CAPABILITIES, HEAD_DIMS, flex_options, for_kernel
from fps_flex import engines
from fps_flex.triton_options import FASTER, FITTING, FLOAT8, shared_kb, triton_options

BF16, FP32 = torch.bfloat16, torch.float32
ALWAYS = {"BACKEND": "TRITON", "ROWS_GUARANTEED_SAFE": True}
RECORD = json.loads((Path(__file__).parents[2] / "docs/results/cards.json").read_text())["rows"]
CASES = [x for x in product(CAPABILITIES, (BF16, FP32, FLOAT8), HEAD_DIMS) if x[0] >= (8, 9) or x[1] != FLOAT8]


def forward(block_m, block_n, stages):
    return {"fwd_BLOCK_M": block_m, "fwd_BLOCK_N": block_n, "fwd_num_stages": stages, "fwd_num_warps": 4}


def backward(block, stages):
    sizes = {f"bwd_BLOCK_{axis}": block for axis in ("M1", "N1", "M2", "N2")}
    return sizes | {"bwd_num_stages": stages, "bwd_num_warps": 4}


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "expected"),
    [
        *((capability, BF16, head_dim, {}) for capability in CAPABILITIES for head_dim in (32, 64, 96, 128)),
        *((capability, FLOAT8, 64, {}) for capability in ((8, 9), (9, 0), (12, 0))),
        *((capability, FLOAT8, 128, forward(64, 128, 3)) for capability in ((8, 9), (9, 0), (10, 0), (12, 1))),
        *((capability, BF16, 256, forward(32, 64, 2) | backward(32, 2)) for capability in ((8, 6), (8, 9), (12, 0))),
        ((8, 6), BF16, 160, forward(32, 64, 2) | backward(32, 2)),
        ((8, 0), BF16, 160, forward(32, 64, 3)),
        ((8, 7), BF16, 192, forward(32, 64, 3)),
        *((capability, BF16, 256, {}) for capability in ((8, 0), (9, 0), (10, 0), (10, 3))),
        ((8, 6), torch.float16, 256, forward(32, 64, 2) | backward(32, 2)),
        ((8, 9), FP32, 128, forward(32, 32, 3)),
        ((8, 0), FP32, 96, forward(32, 32, 3)),
        *((capability, FP32, 128, {}) for capability in ((8, 0), (9, 0), (10, 0))),
    ],
    ids=str,
)
def test_options_are_those_of_the_card(monkeypatch, capability, dtype, head_dim, expected):
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: asked.append(device) or capability)
    q = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 1), dtype=dtype, shape=(1, 2, 256, head_dim))
    assert engines._kernel_options("triton", q) == ALWAYS | expected
    assert asked == [torch.device("cuda", 1)]  # the card that q is on, not the first
    assert engines._kernel_options("flash", q) == {"BACKEND": "FLASH"}


@pytest.mark.compiles
def test_a_compiler_takes_the_options_as_constants(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 6))

    def add(x):
        return x + triton_options(engines._capability(x.device), BF16, 256)["fwd_BLOCK_N"]

    compiled = torch.compile(add, fullgraph=True, dynamic=False, backend="eager")
    assert compiled(torch.zeros(2)).tolist() == [64, 64]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_set_fits_by_the_record(case):
    """Forward and backward, with each kind of scales that was compiled."""
    capability, dtype, head_dim = case
    for kernel in ("forward", "backward")[: 1 if dtype == FLOAT8 else 2]:
        ours = for_kernel(kernel, triton_options(*case))
        options = flex_options(kernel, *case) | ours
        rows = [row for row in rows_of(*case, kernel) if options.items() <= row.items()]
        assert rows, f"no figures of {options}: run docs.make.cards"
        assert all(row["shared_bytes"] <= row["there_is"] == 1024 * shared_kb(capability) for row in rows)
        assert all(row["fits"] for row in rows)


def rows_of(capability, dtype, head_dim, kernel):
    key = ".".join(map(str, capability)), str(dtype).removeprefix("torch."), head_dim, kernel
    return [row for row in RECORD if tuple(row[x] for x in ("capability", "dtype", "head_dim", "kernel")) == key]


@pytest.mark.parametrize("number", range(len(FITTING)))
def test_nothing_is_set_where_flexattentions_own_fits(number):
    kb, dtype, least, largest, options = FITTING[number]
    sizes = [x for x in CASES if (shared_kb(x[0]), x[1]) == (kb, dtype) and least <= x[2] <= largest]
    for head_dim, kernel in product({case[2] for case in sizes}, ("forward", "backward")):
        if for_kernel(kernel, options):
            cards = [case for case in sizes if case[2] == head_dim]
            own = [row for x in cards for row in rows_of(*x, kernel) if row["options"] == "FlexAttention's"]
            assert own and not all(row["fits"] for row in own), (head_dim, kernel)


def test_blocks_divide_the_masks_and_each_other():
    for options in (*FASTER.values(), *(options for *_, options in FITTING)):
        blocks = {name: value for name, value in options.items() if "BLOCK" in name}
        assert all(128 % value == 0 and value >= 16 for value in blocks.values())
        if "bwd_BLOCK_M1" in blocks:  # FlexAttention's own conditions
            assert blocks["bwd_BLOCK_N1"] % blocks["bwd_BLOCK_M1"] == 0
            assert blocks["bwd_BLOCK_M2"] % blocks["bwd_BLOCK_N2"] == 0


def test_shared_memory_is_that_of_the_cuda_guide():
    known = {(8, 0): 163, (8, 6): 99, (8, 7): 163, (8, 9): 99, (9, 0): 227, (10, 0): 227, (10, 3): 227, (11, 0): 227,
             (12, 0): 99, (12, 1): 99}  # fmt: skip
    assert {capability: shared_kb(capability) for capability in known} == known
