"""Random grids, tiles, windows and granularities: ragged edges, single tiles and windows beyond the grid included."""

import random
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Case:
    seed: int
    grid: tuple
    tile: tuple
    block: int
    windows: tuple  # one per sample
    granularities: tuple  # one per sample
    heads: int
    head_dim: int

    def randn(self, *shape):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(self.seed + sum(shape)))

    def qkv(self, tokens):
        """Three tensors [B, H, tokens, D] whose size differs from token to token."""
        shape = (len(self.windows), self.heads, tokens, self.head_dim)
        generator = torch.Generator().manual_seed(self.seed)
        return [
            torch.randn(shape, generator=generator) * (0.5 + torch.rand(shape[:3] + (1,), generator=generator))
            for _ in range(3)
        ]


def random_case(seed):
    rng = random.Random(seed)
    grid, tile = (1, 1, 1), (1, 1, 1)
    while prod(grid) < 48 or prod(tile) < 6:  # enough numbers for an error to be a mean, not a chance
        grid = tuple(rng.randint(1, 7) for _ in range(3))
        tile = tuple(rng.randint(1, min(4, g)) for g in grid)
    counts = [-(-g // t) for g, t in zip(grid, tile, strict=True)]
    batch = rng.randint(1, 3)
    return Case(
        seed=seed,
        grid=grid,
        tile=tile,
        block=rng.choice([4, 8, 16]),
        windows=tuple(tuple(rng.randint(1, n + 2) for n in counts) for _ in range(batch)),
        granularities=tuple(rng.choice([1, 1, 2, 3, 4, "head"]) for _ in range(batch)),
        heads=rng.randint(1, 2),
        head_dim=rng.choice([16, 32]),
    )


SEEDS = (*range(12), 20, 26, 34, 37, 38)  # the first, and those that have what the first lack: one tile on W
CASES = [random_case(seed) for seed in SEEDS]


def relative_error(x, reference):
    return ((x.double() - reference.double()).norm() / reference.double().norm()).item()


def plain_errors(q, k, v, dtype, device="cpu"):
    """Relative error of dense scaled_dot_product_attention in a dtype against float64: output and gradients."""
    results = []
    for compute in (dtype, torch.float64):
        leaves = [x.to(dtype).to(device, compute).requires_grad_() for x in (q, k, v)]
        out = F.scaled_dot_product_attention(*leaves)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(dtype).to(device, compute)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, weights)])
    return [relative_error(x, reference) for x, reference in zip(*results, strict=True)]
