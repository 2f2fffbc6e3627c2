"""The engines that compute attention from the same mods, and the rule that picks one.

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
from functools import cache, wraps
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .checks import show
from .mods import ScoreMod
from .reference import reference_attention

if TYPE_CHECKING:
    from jaxtyping import Float

Engine = Literal["auto", "eager", "triton", "flash"]
Chosen = Literal["eager", "triton", "flash"]
Function = TypeVar("Function", bound=Callable)

FLOAT8 = torch.float8_e4m3fn

# TFLOP/s of work done on an H100 with (dtype, whether there is a score_mod): `python -m eval.bench kernel`, heads of
# 128, a tenth of the tile pairs at 720p (eval/results/kernel-14b-720p-h100.json). `auto` takes the first that can run.
MEASURED: dict[tuple[torch.dtype, bool], dict[Chosen, int]] = {
    (torch.bfloat16, False): {"flash": 650, "triton": 411},
    (torch.bfloat16, True): {"triton": 383},
    (FLOAT8, True): {"triton": 604},
}
FLASH_HEAD_DIMS = (64, 128)

# Block sizes and pipelining of the Triton kernel by (dtype, head dim), where FlexAttention's own are not the best.
TRITON_OPTIONS: dict[tuple[torch.dtype, int], dict[str, int]] = {
    (FLOAT8, 128): {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 128, "fwd_num_warps": 4, "fwd_num_stages": 3},
}

# Every new shape is a graph, and past the limit torch.compile must fail, never turn dense.
RECOMPILE_LIMIT = 64

logger = logging.getLogger(__name__)


def compiled(function: Function) -> Function:
    """torch.compile as everything here uses it: one graph or an error, static shapes, and true division.

    Inductor's own division on a GPU is approximate, which would flip FP8 codes; its search for tiles splits a head's
    channels where a gather is fused with their amax; and its reductions of mixed order left the gradients of a block's
    modulation unwritten (torch 2.11, an H100): without a word, in whatever was in memory before.
    """
    options = {
        "eager_numerics.division_rounding": True,
        "triton.coalesce_tiling_analysis": False,
        "triton.mix_order_reduction": False,
    }
    return limited(torch.compile(function, fullgraph=True, dynamic=False, options=options))


def limited(function: Function) -> Function:
    """A compiled function that may have RECOMPILE_LIMIT graphs."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
            return function(*args, **kwargs)

    return call


_compiled_flex_attention = compiled(flex_attention)


def attend(
    q: Float[Tensor, "b h s d"],
    k: Float[Tensor, "b h s d"],
    v: Float[Tensor, "b h s d"],
    block_mask: BlockMask,
    score_mod: ScoreMod | None = None,
    engine: Engine = "auto",
    scale: float | None = None,
) -> Float[Tensor, "b h s d"]:
    """softmax(score_mod(scale q kᵀ)) v over the pairs that block_mask keeps, in q's dtype; scale is 1 / √d if None.

    Every row must keep a key of each of its blocks. Raises ValueError for an engine that can't run this, and for
    gradients through one that has none.
    """
    chosen = choose_engine(engine, q.device, q.dtype, q.shape[-1], block_mask.BLOCK_SIZE[0], score_mod is not None)
    if chosen == "eager":
        return reference_attention(q, k, v, block_mask.mask_mod, score_mod, scale)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        _check_gradients(q)
    flex = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention
    # autocast would turn fp8 and fp32 inputs into bf16
    with torch.autocast(q.device.type, enabled=False):
        return flex(
            q, k, v, score_mod=score_mod, block_mask=block_mask, scale=scale, kernel_options=_kernel_options(chosen, q)
        )


def _kernel_options(engine: Chosen, q: Tensor) -> dict[str, Any] | None:
    if not q.is_cuda:
        return None
    if engine == "flash":
        return {"BACKEND": "FLASH"}
    return {"BACKEND": "TRITON", "ROWS_GUARANTEED_SAFE": True, **TRITON_OPTIONS.get((q.dtype, q.shape[-1]), {})}


def check_engine(engine: object) -> Engine:
    """The engine itself. Raises ValueError for an unknown one."""
    if not isinstance(engine, str) or engine not in get_args(Engine):
        raise ValueError(f"engine is {show(engine)}, expected auto, eager, triton or flash")
    return engine


@torch.compiler.assume_constant_result
def choose_engine(
    engine: Engine, device: torch.device, dtype: torch.dtype, head_dim: int, block: int, score_mod: bool
) -> Chosen:
    """The engine itself, or for `auto` eager on a CPU and on a GPU the fastest measured one that can run such a call.

    dtype: of q, k, v as the kernel gets them. block: slots of a block of the mask. score_mod: whether there is one.
    Says once what `auto` took, and why. Raises ValueError naming the engines that would work when this one can't.
    """
    check_engine(engine)
    what = (device, dtype, head_dim, block, score_mod)
    if engine == "auto" and device.type != "cuda" and dtype != FLOAT8:
        _say_once("eager", device.type, dtype, "the dense oracle, which also has gradients")
        return "eager"
    rates = MEASURED.get((dtype, score_mod), {"triton": 0}) if engine == "auto" else {engine: 0}
    able = [name for name in rates if obstacle(name, *what) is None]
    if able:
        if engine == "auto":
            _say_once(able[0], device.type, dtype, _compare(rates, able, *what))
        return able[0]
    reasons = "; ".join(f"{name}: {obstacle(name, *what)}" for name in rates)
    others = [name for name in ("flash", "triton", "eager") if obstacle(name, *what) is None]
    raise ValueError(f"no engine for this call ({reasons}); engines that would work: {', '.join(others) or 'none'}")


def obstacle(
    engine: Chosen, device: torch.device, dtype: torch.dtype, head_dim: int, block: int, score_mod: bool
) -> str | None:
    """Why an engine can't run such a call, in a few words; None if it can."""
    name = str(dtype).removeprefix("torch.")
    if engine == "eager":
        return "the oracle has no float8 carrier: use carrier 'input'" if dtype == FLOAT8 else None
    if engine == "triton":
        if device.type != "cuda":
            if dtype == FLOAT8:
                return "the float8 carrier needs a GPU: use carrier 'input'"
            if torch.__version__ < (2, 13) and torch.get_num_threads() > 1:
                return "PyTorch before 2.13 crashes there with several threads on a CPU: torch.set_num_threads(1)"
            return None
        if dtype == FLOAT8 and torch.cuda.get_device_capability(device) < (8, 9):
            return "this GPU has no float8 (compute capability 8.9 or later has): use carrier 'input'"
        if dtype == torch.float64:
            return "no float64 on a GPU"
        least = 32 if dtype == FLOAT8 else 16
        if not least <= head_dim <= 256:
            return f"heads of {head_dim}, expected {least} to 256 in {name}"
        return f"blocks of {block} slots, expected a multiple of 128 on a GPU" if block % 128 else None
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return "needs a Hopper GPU or later"
    if not flash_is_installed():
        return "flash-attn-4 isn't installed (pip install --pre flash-attn-4)"
    if dtype != torch.bfloat16:
        return f"{name}, expected bfloat16"
    if score_mod:
        return "fp32 scales need a score_mod, which is used with triton only: take scale_format 'pow2'"
    if head_dim not in FLASH_HEAD_DIMS:
        return f"heads of {head_dim}, expected {' or '.join(map(str, FLASH_HEAD_DIMS))}"
    return f"blocks of {block} slots, expected 128" if block != 128 else None


@cache
def flash_is_installed() -> bool:
    try:
        return find_spec("flash_attn.cute") is not None
    except ImportError:
        return False


def _check_gradients(q: Tensor) -> None:
    if not q.is_cuda:
        raise ValueError("the triton engine has no gradients on a CPU: use engine eager or auto")
    if q.dtype == FLOAT8:
        raise ValueError("the float8 carrier has no gradients: train with carrier 'input'")


def _compare(rates: dict[Chosen, int], able: list[Chosen], *what: Any) -> str:
    """Why the first that is able was taken, and what stood in the way of a faster one."""
    if not rates[able[0]]:
        return "compiled FlexAttention; not measured in this dtype"
    said = ", ".join(f"{name} {tflops}" for name, tflops in rates.items())
    missing = "".join(f"; {name}: {obstacle(name, *what)}" for name in rates if name not in able)
    return f"TFLOP/s measured on an H100: {said}{missing}"


@cache
def _say_once(engine: str, device: str, dtype: torch.dtype, reason: str) -> None:
    logger.info("attention engine on %s in %s: %s (%s)", device, str(dtype).removeprefix("torch."), engine, reason)
