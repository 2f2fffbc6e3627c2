"""The order in which a run meets its clips: a function of the seed and of how many clips were taken, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

HELD_OUT = -1  # in place of a pass: a validation clip, which is always cut alike
PADDING = -2  # a clip that only evens out the processes' numbers of batches, and counts for nothing


class Pick(NamedTuple):
    """A clip by its index, and which pass over the data set meets it, or HELD_OUT, or PADDING."""

    index: int
    pass_: int


def as_pick(key: int | Pick) -> Pick:
    """A plain index means the clip as validation sees it."""
    return key if isinstance(key, Pick) else Pick(key, HELD_OUT)


class Passes(Sampler[list[Pick]]):
    """Batches without end, each of one bucket (clips of one size): pass after pass over its clips, shuffled anew.

    buckets: indices of the clips of each size, which may be none. rank, world: of the processes, each of which gets its
    own clips. taken: clips that the run has taken of each bucket already, by all processes; none for a new run.

    A bucket's passes follow each other without a gap, and a batch may hold the end of one and the beginning of the
    next. So whatever the batch size and the number of processes, from `taken` on no clip is left out or met twice.
    Raises ValueError where no bucket has a clip.
    """

    def __init__(
        self,
        buckets: list[list[int]],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        taken: Sequence[int] | None = None,
    ) -> None:
        if not any(buckets):
            raise ValueError("there is no clip to train on")
        self.buckets, self.batch_size, self.seed = buckets, batch_size, seed
        self.rank, self.world = rank, world
        self.taken = list(taken or [0] * len(buckets))

    def __iter__(self) -> Iterator[list[Pick]]:
        for bucket, first, count in self._batches():
            picks = [self._pick(bucket, position) for position in range(first, first + count)]
            yield picks[self.rank :: self.world]

    def positions(self) -> Iterator[list[int]]:
        """`taken` after each batch in turn."""
        taken = list(self.taken)
        for bucket, first, count in self._batches():
            taken[bucket] = first + count
            yield list(taken)

    def _batches(self) -> Iterator[tuple[int, int, int]]:
        """(bucket, its first clip's position in the bucket's passes, clips) of each batch, over all processes.

        All buckets are done with a pass before any begins the next, but for what fills a batch. Within a pass, chance
        takes each as often as it has clips left.
        """
        taken, count = list(self.taken), self.batch_size * self.world
        while True:
            sizes = [len(bucket) for bucket in self.buckets]
            pass_ = min(done // size for done, size in zip(taken, sizes, strict=True) if size)
            left = [max(0, (pass_ + 1) * size - done) for done, size in zip(taken, sizes, strict=True)]
            bucket = _draw(left, generator_of(self.seed, sum(taken)))
            yield bucket, taken[bucket], count
            taken[bucket] += count

    def _pick(self, bucket: int, position: int) -> Pick:
        pass_, place = divmod(position, len(self.buckets[bucket]))
        return Pick(self.buckets[bucket][_shuffled(len(self.buckets[bucket]), self.seed, bucket, pass_)[place]], pass_)


class HeldOut(Sampler[list[Pick]]):
    """Batches of the validation clips in turn, as many on every process: what one lacks is PADDING."""

    def __init__(self, clips: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        whole = range(0, -(-clips // world) * world)
        picks = [Pick(i, HELD_OUT) if i < clips else Pick(0, PADDING) for i in whole][rank::world]
        self.batches = [picks[i : i + batch_size] for i in range(0, len(picks), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Pick]]:
        return iter(self.batches)


def generator_of(*numbers: int) -> torch.Generator:
    """Chance that depends on these numbers alone."""
    return torch.Generator().manual_seed(hash(numbers) % 2**63)


@lru_cache(maxsize=64)
def _shuffled(clips: int, *numbers: int) -> list[int]:
    return torch.randperm(clips, generator=generator_of(*numbers)).tolist()


def _draw(weights: list[int], generator: torch.Generator) -> int:
    """An index, each as likely as its whole weight."""
    ticket = int(torch.randint(sum(weights), (), generator=generator))
    for index, weight in enumerate(weights):
        ticket -= weight
        if ticket < 0:
            return index
    raise AssertionError("the weights sum to more than the ticket")
