"""The engines that compute attention from the same mask_mod and score_mod, and the rule that picks one.

eager: the oracle; any device, differentiable, holds all scores; P (the softmax weights) in fp32.
triton: compiled FlexAttention; forward and backward on a GPU, forward only on a CPU (where Inductor writes C++ in
place of Triton). P is rounded to the carrier: to bf16, or to e4m3 unscaled. So is the output, unless it is compiled
together with what follows it.
flash: FlexAttention's FLASH backend, which is flash-attn-4 with our mask_mod in it; forward and backward on Hopper and
newer; P is rounded to bf16. No float8 and no score_mod, so scales are powers of two, or there are none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.torch_version import TorchVersion

from .checks import show
from .compile import compiled
from .reference import reference_attention
from .score_mods import ScoreMod
from .triton_options import FLOAT8, triton_options

if TYPE_CHECKING:
    from jaxtyping import Float

Engine = Literal["auto", "eager", "triton", "flash"]
Chosen = Literal["eager", "triton", "flash"]

# What `auto` takes by (dtype, whether there is a score_mod): the first that can run. In the order of their TFLOP/s of
# work done on an H100: `python -m eval.bench kernel`, heads of 128, a tenth of the tile pairs at 720p
# (docs/results/kernel-14b-720p-h100.json).
PREFERRED: dict[tuple[torch.dtype, bool], tuple[Chosen, ...]] = {
    (torch.bfloat16, False): ("flash", "triton"),
    (torch.bfloat16, True): ("triton",),
    (FLOAT8, True): ("triton",),
}
FIGURES = {
    (torch.bfloat16, False): "flash 650, triton 411",
    (torch.bfloat16, True): "triton 383",
    (FLOAT8, True): "triton 604",
}
FLASH_HEAD_DIMS = (64, 128)
LEAST_FLASH = "4.0.0b26"  # before it, its block-sparse backward could read inputs before they were there

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """What of a call decides which engines can run it.

    dtype: of q, k, v as the kernel gets them. block: slots of a block of the mask. has_score_mod: whether scales are
    left to a score_mod.
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    block: int
    has_score_mod: bool

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


_compiled_flex_attention = compiled(flex_attention)


def run(
    engine: Chosen,
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b h kv d"],
    v: Float[Tensor, "b h kv d"],
    block_mask: BlockMask,
    score_mod: ScoreMod | None = None,
    softmax_scale: float | None = None,
) -> Float[Tensor, "b h s d"]:
    """softmax(score_mod(softmax_scale q kᵀ)) v over the pairs that block_mask keeps, in q's dtype.

    softmax_scale: 1 / √d if None. Every row must keep a key of each of its blocks.
    Raises ValueError for gradients through an engine that has none.
    """
    if engine == "eager":
        return reference_attention(q, k, v, block_mask.mask_mod, score_mod, softmax_scale)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        _check_gradients(q)
    # a tensor, as no more is asked for than the output
    flex = cast("Callable[..., Tensor]", flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention)
    options = _kernel_options(engine, q)
    # autocast would turn fp8 and fp32 inputs into bf16
    with torch.autocast(q.device.type, enabled=False):
        return flex(q, k, v, score_mod=score_mod, block_mask=block_mask, scale=softmax_scale, kernel_options=options)


def _kernel_options(engine: Chosen, q: Tensor) -> dict[str, Any] | None:
    if not q.is_cuda:
        return None
    if engine == "flash":
        return {"BACKEND": "FLASH"}
    options = triton_options(_capability(q.device), q.dtype, q.shape[-1])
    return {"BACKEND": "TRITON", "ROWS_GUARANTEED_SAFE": True, **options}


@torch.compiler.assume_constant_result  # no compiler traces what asks the driver
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def check_engine(engine: object) -> Engine:
    """The engine itself. Raises ValueError for an unknown one."""
    if not isinstance(engine, str) or engine not in get_args(Engine):
        raise ValueError(f"engine is {show(engine)}, expected auto, eager, triton or flash")
    return cast(Engine, engine)


@torch.compiler.assume_constant_result  # it logs; and the constants that a compiler can hand on are no Call
def choose_engine(
    engine: Engine, device: torch.device, dtype: torch.dtype, head_dim: int, block: int, has_score_mod: bool
) -> Chosen:
    """The engine itself, or for `auto` eager on a CPU and on a GPU the first of PREFERRED that can run the Call.

    Says once what `auto` took, and why. Raises ValueError naming the engines that would work when this one can't.
    """
    check_engine(engine)
    call = Call(device, dtype, head_dim, block, has_score_mod)
    if engine == "auto" and call.device.type != "cuda" and call.dtype != FLOAT8:
        _say_once("eager", call.device.type, call.dtype_name, "the dense oracle, which also has gradients")
        return "eager"
    asked = PREFERRED.get((call.dtype, call.has_score_mod), ("triton",)) if engine == "auto" else (engine,)
    able = [name for name in asked if obstacle(name, call) is None]
    if able:
        if engine == "auto":
            _say_once(able[0], call.device.type, call.dtype_name, _why(able[0], call))
        return able[0]
    reasons = "; ".join(f"{name}: {obstacle(name, call)}" for name in asked)
    others = [name for name in ("flash", "triton", "eager") if obstacle(name, call) is None]
    raise ValueError(f"no engine for this call ({reasons}); engines that would work: {', '.join(others) or 'none'}")


def obstacle(engine: Chosen, call: Call) -> str | None:
    """Why an engine can't run a call, in a few words; None if it can."""
    if engine == "eager":
        return "the oracle has no float8 carrier: use carrier 'input'" if call.dtype == FLOAT8 else None
    if engine == "flash":
        return _obstacle_to_flash(call)
    return _obstacle_to_triton(call) if call.device.type == "cuda" else _obstacle_on_a_cpu(call)


def _obstacle_on_a_cpu(call: Call) -> str | None:
    if call.dtype == FLOAT8:
        return "the float8 carrier needs a GPU: use carrier 'input'"
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13) and torch.get_num_threads() > 1:
        return "PyTorch before 2.13 crashes there with several threads on a CPU: torch.set_num_threads(1)"
    return None


def _obstacle_to_triton(call: Call) -> str | None:
    if call.dtype == FLOAT8 and torch.cuda.get_device_capability(call.device) < (8, 9):
        return "this GPU has no float8 (compute capability 8.9 or later has): use carrier 'input'"
    if call.dtype == torch.float64:
        return "no float64 on a GPU"
    least = 32 if call.dtype == FLOAT8 else 16
    if not least <= call.head_dim <= 256:
        return f"heads of {call.head_dim}, expected {least} to 256 in {call.dtype_name}"
    return f"blocks of {call.block} slots, expected a multiple of 128 on a GPU" if call.block % 128 else None


def _obstacle_to_flash(call: Call) -> str | None:
    if call.device.type != "cuda" or torch.cuda.get_device_capability(call.device) < (9, 0):
        return "needs a Hopper GPU or later"
    if missing := missing_flash():
        return missing
    if call.dtype != torch.bfloat16:
        return f"{call.dtype_name}, expected bfloat16"
    if call.has_score_mod:
        return "fp32 scales need a score_mod, which is used with triton only: take scale_format 'pow2'"
    if call.head_dim not in FLASH_HEAD_DIMS:
        return f"heads of {call.head_dim}, expected {' or '.join(map(str, FLASH_HEAD_DIMS))}"
    return f"blocks of {call.block} slots, expected 128" if call.block != 128 else None


@cache
def missing_flash() -> str | None:
    """Why flash-attn-4 can't be used, and what to do; None if it can."""
    how = f"(pip install --pre 'flash-attn-4>={LEAST_FLASH}')"
    try:
        found = version("flash-attn-4") if find_spec("flash_attn.cute") else None
    except (ImportError, PackageNotFoundError):  # also FlashAttention-2's package, which has parts of it
        found = None
    if found is None:
        return f"flash-attn-4 isn't installed {how}"
    return None if TorchVersion(found) >= LEAST_FLASH else f"flash-attn-4 is {found}, which may read inputs early {how}"


def _check_gradients(q: Tensor) -> None:
    if not q.is_cuda:
        raise ValueError("the triton engine has no gradients on a CPU: use engine eager or auto")
    if q.dtype == FLOAT8:
        raise ValueError("the float8 carrier has no gradients: train with carrier 'input'")


def _why(engine: Chosen, call: Call) -> str:
    """Why `auto` took an engine, and what stood in the way of one that it prefers."""
    what = call.dtype, call.has_score_mod
    if what not in FIGURES:
        return "compiled FlexAttention; not measured in this dtype"
    better = PREFERRED[what][: PREFERRED[what].index(engine)]
    missing = "".join(f"; {name}: {obstacle(name, call)}" for name in better)
    return f"TFLOP/s measured on an H100: {FIGURES[what]}{missing}"


@cache
def _say_once(engine: str, device: str, dtype: str, reason: str) -> None:
    logger.info("attention engine on %s in %s: %s (%s)", device, dtype, engine, reason)
