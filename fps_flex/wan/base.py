"""What a Wan transformer is trained on: its weights' dtype, and what its linear layers compute in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..attention import FPSAttention
from ..checks import one_of
from ..engines import FLOAT8
from .casting import check_finite
from .config import WanConfig
from .fp8_linear import Fp8Linear, quantize_rows
from .linears import PARTS, Linears, check_linears, check_torchao, compute_in_fp8, has_float8
from .lora import LAYERS
from .model import Wan
from .weights import build_empty, fill

Base = Literal["fp32", "bf16", "fp8"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.bfloat16}  # fp8: of all but the blocks' matrices


def check_base(base: Base, linears: Linears, frozen: bool, device: torch.device) -> None:
    """Raises ValueError for unknown ones, for weights that can't be trained so, and without float8 or torchao."""
    one_of("base", base, get_args(Base))
    check_linears(linears, device)
    check_frozen(base, frozen)
    if base == "fp8" and not has_float8(device):
        raise ValueError("base fp8 needs a GPU with float8 (compute capability 8.9 or later): use bf16")
    if base != "fp8":
        check_torchao(linears)


def check_frozen(base: Base, frozen: bool) -> None:
    """Raises ValueError for weights in fp8 that are trained."""
    if base == "fp8" and not frozen:
        raise ValueError("base fp8 is of frozen weights, and these are trained: use fp32 or bf16, or train a LoRA")


def build_base(
    config: WanConfig,
    attention: FPSAttention,
    tensors: Iterable[tuple[str, Tensor]],
    base: Base,
    linears: Linears,
    device: torch.device | str = "cpu",
) -> Wan:
    """A model filled tensor by tensor. tensors: with their official names; each is in memory only while it is placed.

    linears: of base fp8 which layers multiply codes; of others those that are to compute in fp8.
    Raises ValueError as `fill`.
    """
    model = build_empty(config, attention)
    if base == "fp8":
        _expect_codes(model, linears)
        tensors = _store_codes(model, tensors, device)
    fill(model, tensors, device, DTYPES[base])
    if base != "fp8":
        compute_in_fp8(model, linears)
    return model


def _expect_codes(model: Wan, linears: Linears) -> None:
    """Put empty layers for codes in the places of the blocks' linear ones."""
    for block in model.blocks:
        for name in LAYERS:
            layer = block.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            codes, scale = layer.weight.to(FLOAT8), layer.weight[:, :1]
            block.set_submodule(name, Fp8Linear(codes, scale, layer.bias, name.startswith(PARTS[linears])))


def _store_codes(
    model: Wan, tensors: Iterable[tuple[str, Tensor]], device: torch.device | str
) -> Iterator[tuple[str, Tensor]]:
    """Those tensors that are no matrix of codes; of the others the codes are in place."""
    for name, tensor in tensors:
        layer = model.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, Fp8Linear) and name.endswith(".weight"):
            check_finite(name, tensor)
            codes, scale = quantize_rows(tensor.to(device))
            layer.weight, layer.scale = (nn.Parameter(x, requires_grad=False) for x in (codes, scale))
        else:
            yield name, tensor
