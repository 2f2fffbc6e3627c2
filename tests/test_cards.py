"""What docs.make.cards reads out of Inductor's kernels, and what it says without a GPU or Triton."""

import sys

import pytest
import torch

from docs.make.cards import command, flex_options
from docs.make.kernels import parse_source, read_sources
from fps_flex.triton_options import FLOAT8
from tests.helpers.commands import refused

KERNEL = """
import triton

@triton_heuristics.template(
num_stages=3,
triton_meta={{'signature': {{'arg_Q': '{pointer}', {delta}'in_ptr9': '*fp32', 'out_ptr0': '{pointer}'}}, 'device': 0}},
)
@triton.jit
def triton_flex_attention(arg_Q, {argument}in_ptr9, out_ptr0):
    QK_HEAD_DIM : tl.constexpr = {head_dim}
    QK_HEAD_DIM_ROUNDED : tl.constexpr = {head_dim}
    SAFE_HEAD_DIM : tl.constexpr = True
    BLOCK_M : tl.constexpr = 128
    post_mod_scores = {scores}

@triton.jit
def forward_inner(arg_Q):
    BLOCK_M : tl.constexpr = 128
"""


def kernel(pointer="*bf16", scores="tmp0", backward=False, head_dim=128):
    delta, argument = ("'arg_DELTA': '*fp32', ", "arg_DELTA, ") if backward else ("", "")
    return KERNEL.format(pointer=pointer, scores=scores, delta=delta, argument=argument, head_dim=head_dim)


@pytest.fixture
def sources(tmp_path):
    plain = [kernel(scores=scores, backward=backward) for scores in ("tmp0", "tmp9") for backward in (False, True)]
    others = [kernel(head_dim=64), "import triton", f"async_compile = 1\n{kernel()}"]
    for i, text in enumerate([*others, *plain, kernel("*fp8e4nv", "tmp9")]):
        (tmp_path / f"{i:02}").mkdir()
        (tmp_path / f"{i:02}/c{i}.py").write_text(text)
    return tmp_path


def test_a_kernel_of_each_kind_is_found(sources):
    found = [(source.float8, source.scaled, source.kernel) for source in read_sources(sources)]
    assert found == [(False, False, "forward"), (False, False, "backward"), (False, True, "forward"),
                     (False, True, "backward"), (True, True, "forward")]  # fmt: skip


def test_other_heads_types_and_blocks_are_put_in_everywhere():
    source = parse_source(kernel(scores="tmp9", backward=True))
    assert source.name == "triton_flex_attention" and "triton_heuristics" not in source.text
    changed = source.of_heads(96).of_dtype(torch.float32).with_constants({"BLOCK_M": 32})
    assert "QK_HEAD_DIM : tl.constexpr = 96\n" in changed.text and "ROUNDED : tl.constexpr = 128\n" in changed.text
    assert (
        "SAFE_HEAD_DIM : tl.constexpr = False" in changed.text
        and changed.text.count("BLOCK_M : tl.constexpr = 32") == 2
    )
    assert [*changed.signature.values()] == ["*fp32"] * 4 and [*source.signature.values()].count("*bf16") == 2
    assert "SAFE_HEAD_DIM : tl.constexpr = True" in source.of_heads(256).text


def test_flexattentions_options_are_those_of_the_card():
    def blocks(kernel, *card):
        return tuple(flex_options(kernel, *card).values())

    bf16 = torch.bfloat16
    assert blocks("forward", (9, 0), bf16, 128) == (128, 64, 3, 8)
    assert blocks("forward", (12, 0), bf16, 128) == (128, 64, 2, 8)
    assert blocks("forward", (8, 9), FLOAT8, 128) == (64, 64, 3, 4)
    assert blocks("backward", (8, 6), bf16, 128) == (64, 64, 64, 64, 3, 4)
    assert blocks("backward", (8, 9), bf16, 128) == (64, 64, 64, 64, 2, 4)
    assert [*flex_options("backward", (8, 6), bf16, 64)][:2] == ["BLOCK_M1", "BLOCK_N1"]


def test_what_is_missing_is_said_in_a_line(sources, capsys, monkeypatch, tmp_path):
    none = "none has 0 kernels of FlexAttention for heads of 128, expected 5: write them on a GPU with --generate true"
    assert none in refused(capsys, command, [tmp_path / "none"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--generate needs a GPU" in refused(capsys, command, [tmp_path / "none", "--generate=true"])
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "triton isn't installed: pip install triton==3.6.0" in refused(capsys, command, [sources])
