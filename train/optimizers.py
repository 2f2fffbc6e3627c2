"""AdamW, with its momenta in fp32, also on the host, or in 8 bits; a checkpoint holds either as plain tensors."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fps_flex.checks import one_of
from fps_flex.wan.casting import check_finite
from fps_flex.wan.streamed import Streamed

from .offloaded import OffloadedAdamW
from .shares import local_part

OptimizerName = Literal["adamw", "adamw8bit"]
LEAST_EPS = 1e-8  # of 8 bits, in which small squares of gradients become 0
PACKED = "packed"  # of a packed momentum: what it is besides tensors


def check_optimizer(name: OptimizerName, eps: float, sharded: bool = False, offload: bool = False) -> None:
    """sharded: whether processes share it. offload: whether its momenta wait on the host.

    Raises ValueError for an unknown one, one that isn't installed, can't be shared or can't wait there, and an eps that
    would make its steps explode.
    """
    one_of("model.optimizer", name, get_args(OptimizerName))
    if name == "adamw":
        return
    if sharded:
        raise ValueError("model.optimizer adamw8bit can't be shared out: use adamw, or parallel.shard false")
    if offload:
        raise ValueError(
            "model.offload_optimizer is of adamw, and model.optimizer is adamw8bit, whose momenta stay on the GPU: "
            "leave either out"
        )
    if find_spec("torchao") is None:
        raise ValueError("model.optimizer adamw8bit needs torchao: pip install torchao, or use adamw")
    if eps < LEAST_EPS:
        raise ValueError(
            f"model.eps is {eps:g}, expected at least {LEAST_EPS:g} with adamw8bit: its squares of small gradients "
            "round to 0, and what is left to divide by is eps"
        )


class RowsAdamW(torch.optim.AdamW):
    """AdamW of what processes share out, each of its own rows: the same update, and a fraction of the host's time that
    DTensors take.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        has_complex = super()._init_group(group, *lists)
        for tensors in lists:
            tensors[:] = map(local_part, tensors)
        return has_complex


def build_optimizer(
    name: OptimizerName,
    parameters: Iterable[nn.Parameter],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    offload: bool = False,
) -> torch.optim.Optimizer:
    """offload: whether the momenta wait in the host's memory."""
    if offload:
        return OffloadedAdamW(parameters, lr, betas, eps, weight_decay)
    if name == "adamw":
        return RowsAdamW(parameters, lr, betas, eps, weight_decay, fused=True)
    from torchao.optim import AdamW8bit

    return AdamW8bit(parameters, lr, betas, eps, weight_decay)


def pack(momenta: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """An optimizer's state in which what torchao keeps in 8 bits is the plain tensors that it consists of."""
    return {index: {name: _pack(x) for name, x in momentum.items()} for index, momentum in momenta.items()}


def unpack(momenta: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The inverse of `pack`. What processes wrote together never was packed."""
    return {
        index: momentum if isinstance(momentum, Streamed) else {name: _unpack(x) for name, x in momentum.items()}
        for index, momentum in momenta.items()
    }


def _pack(value: Tensor) -> Tensor | dict[str, Any]:
    if not hasattr(value, "codes"):
        return value
    about = {"signed": value.signed, "dtype": str(value.dtype).removeprefix("torch.")}
    return {"codes": value.codes, "scale": value.scale, "qmap": value.qmap, PACKED: about}


def _unpack(value: Tensor | dict[str, Any]) -> Tensor:
    if isinstance(value, Tensor):
        return value
    from torchao.optim.subclass_8bit import OptimState8bit

    about = value[PACKED]
    dtype = getattr(torch, about["dtype"])
    return OptimState8bit(value["codes"], value["scale"], value["qmap"], about["signed"], dtype)


def check_momentum(what: str, name: str, values: Tensor) -> None:
    """name: of AdamW's step, exp_avg and exp_avg_sq. Raises ValueError for a value that isn't finite, and where a count
    of steps or a mean of squares is negative; `what` names the tensor.
    """
    check_finite(what, values)
    if name != "exp_avg" and values.numel() and (least := values.float().amin()) < 0:
        raise ValueError(f"{what} holds a value of {least:g}, expected none below 0: fetch or save it again")


def shape_of_momentum(value: Any) -> tuple[int, ...] | None:
    """Of a momentum, packed or not; None for what is none."""
    if isinstance(value, dict):
        value = value.get("codes") if value.keys() == {"codes", "scale", "qmap", PACKED} else None
    return tuple(value.shape) if isinstance(value, Tensor) else None
