"""The order in which a training run meets its clips: a function of the seed and the position alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import torch
from torch.utils.data import Sampler


class Pick(NamedTuple):
    """A clip by its index, and which pass over the data set meets it."""

    index: int
    pass_: int


class Passes(Sampler[list[Pick]]):
    """Batches without end: pass after pass over the clips, each shuffled anew; of one bucket (clips of one size) each.

    buckets: indices of the clips of each size. rank, world: of the processes, each of which gets its own clips.
    start: the batch to begin with, so that a resumed run goes on with the batch after its last.
    A pass leaves out what doesn't fill a batch on every process; a bucket smaller than that repeats its clips.
    """

    def __init__(
        self, buckets: list[list[int]], batch_size: int, seed: int, rank: int = 0, world: int = 1, start: int = 0
    ) -> None:
        self.buckets, self.batch_size, self.seed = buckets, batch_size, seed
        self.rank, self.world, self.start = rank, world, start

    def __iter__(self) -> Iterator[list[Pick]]:
        step = self.batch_size * self.world
        fills = [max(1, len(bucket) // step) for bucket in self.buckets]
        shuffled, batches = -1, []
        for position in count(self.start):
            pass_, i = divmod(position, sum(fills))
            if pass_ != shuffled:
                shuffled, batches = pass_, self._shuffle(pass_, fills, step)
            yield [Pick(index, pass_) for index in batches[i][self.rank :: self.world]]

    def _shuffle(self, pass_: int, fills: list[int], step: int) -> list[list[int]]:
        """The batches of one pass, over all processes."""
        chance = chance_of(self.seed, pass_)
        batches = []
        for bucket, fill in zip(self.buckets, fills, strict=True):
            order = torch.randperm(len(bucket), generator=chance).tolist()
            clips = [bucket[order[i % len(order)]] for i in range(fill * step)]
            batches += [clips[i * step : (i + 1) * step] for i in range(fill)]
        return [batches[i] for i in torch.randperm(len(batches), generator=chance).tolist()]


def chance_of(*numbers: int) -> torch.Generator:
    """Chance that depends on these numbers alone."""
    return torch.Generator().manual_seed(hash(numbers) % 2**63)
