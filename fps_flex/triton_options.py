"""Block sizes and pipelining of FlexAttention's Triton kernels, where its own are slower or don't fit a GPU.

A kernel keeps the K and V of its pipeline's stages in shared memory. FlexAttention's tables were made for heads of 64,
128 and 256 on an A100, an H100 and their successors: on GPUs with less, or for heads between, its kernels may ask for
more than there is, and don't start. What each needs was compiled for every card, and not run on any but an H100 and an
H200 (docs/make/cards.py, docs/results/cards.json): of blocks that fit these were taken, the ones that spill the fewest
registers.
"""

from __future__ import annotations

import torch

FLOAT8 = torch.float8_e4m3fn

Options = dict[str, int]


def _forward(block_m: int, block_n: int, num_stages: int) -> Options:
    return {"fwd_BLOCK_M": block_m, "fwd_BLOCK_N": block_n, "fwd_num_stages": num_stages, "fwd_num_warps": 4}


def _backward(block: int, num_stages: int) -> Options:
    blocks = {f"bwd_BLOCK_{axis}": block for axis in ("M1", "N1", "M2", "N2")}
    return {**blocks, "bwd_num_stages": num_stages, "bwd_num_warps": 4}


# By (dtype, head dim), on any GPU: measured on an H100.
FASTER: dict[tuple[torch.dtype, int], Options] = {(FLOAT8, 128): _forward(64, 128, 3)}

# (KB of shared memory, dtype, least and largest heads, options): compiled, not run.
FITTING: tuple[tuple[int, torch.dtype, int, int, Options], ...] = (
    (99, torch.bfloat16, 129, 256, _forward(32, 64, 2) | _backward(32, 2)),
    (163, torch.bfloat16, 129, 255, _forward(32, 64, 3)),
    (99, torch.float32, 65, 128, _forward(32, 32, 3)),
    (163, torch.float32, 65, 127, _forward(32, 32, 3)),
    (99, torch.float32, 129, 256, _forward(32, 16, 3)),
    (163, torch.float32, 129, 255, _forward(32, 16, 3)),
    (227, torch.float32, 129, 255, _forward(32, 32, 3)),
)


def triton_options(capability: tuple[int, int], dtype: torch.dtype, head_dim: int) -> Options:
    """Kernel options for q, k and v of a dtype on a GPU of a compute capability; none where FlexAttention's own do."""
    alike = torch.bfloat16 if dtype == torch.float16 else dtype  # both need the same
    for kb, of, least, largest, options in FITTING:
        if (kb, of) == (shared_kb(capability), alike) and least <= head_dim <= largest:
            return options
    return FASTER.get((dtype, head_dim), {})


def shared_kb(capability: tuple[int, int]) -> int:
    """KB (1024 bytes) of shared memory that a block of threads can have, by CUDA's table of compute capabilities."""
    if capability in ((8, 0), (8, 7)):
        return 163
    return 227 if 9 <= capability[0] <= 11 else 99
