"""Processes that make each video together: teams, among which the videos are shared out."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from fps_flex.checks import as_whole
from fps_flex.wan.auto import sequence_over
from fps_flex.wan.collectives import Group
from fps_flex.wan.flow import Passes, in_turn
from fps_flex.wan.guidance import OnePassEach
from fps_flex.wan.sequence import Sequence, Whole
from train.common.ranks import rank_and_world
from train.common.refusals import one_line
from train.common.sharing import SequenceParallel
from train.common.work import PATIENCE, find_device, leave_together

Result = TypeVar("Result")


@dataclass(frozen=True)
class Parallel(SequenceParallel):
    """How many processes make each video together; torchrun starts them.

    Args:
        guidance: 2 puts the two passes of guidance on two processes, or on two such groups.
    """

    guidance: int = 1

    @property
    def size(self) -> int:
        return self.sequence * self.guidance

    def check_passes(self, *guidances: float | None) -> None:
        """Raises ValueError where two processes would make one pass. guidances: of each expert; None is another's."""
        if self.guidance > 1 and all(x in (None, 1) for x in guidances):
            raise ValueError("guidance is 1, which takes one pass: leave parallel.guidance out")

    def __str__(self) -> str:
        """As it was asked for."""
        pairs = ((x.name, getattr(self, x.name)) for x in fields(self) if getattr(self, x.name) != x.default)
        return " ".join(f"--parallel.{name} {value}" for name, value in pairs)


@dataclass(frozen=True)
class Team:
    """This process's team, number `number` of `count`, of `size` processes.

    leads: whether this is the process that speaks and writes. sequence: shares a video's tokens. passes: of guidance.
    members: of the team; None where that is this process alone.
    """

    number: int
    count: int
    size: int = 1
    leads: bool = True
    sequence: Sequence = Whole()
    passes: Passes = in_turn
    members: dist.ProcessGroup | None = None

    def together(self, work: Callable[[], Result], everyone: bool = False) -> Result:
        """What work gives here. What one process of the team refuses, all do, and the first of them says why.

        everyone: of all teams, in place of this one. Raises SystemExit, or where the team is one process ValueError.
        """
        if self.members is None:
            return work()
        try:
            result, told = work(), None
        except ValueError as error:
            result, told = None, one_line(error)
        refuse_together(told, dist.group.WORLD if everyone else self.members)
        return result

    def from_leader(self, value: Any) -> Any:
        """The leader's value, on all processes of the team."""
        if self.members is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=self.members, group_src=0)
        return values[0]

    def disband(self) -> None:
        """Once all of the team are through. Threads of theirs that still ran would end a process with a fault."""
        if self.members is not None:
            leave_together(self.members)


def refuse_together(told: str | None, group: dist.ProcessGroup) -> None:
    """Ends all processes of a group with exit code 2 where any has been told something, which its first one says."""
    all_told: list[str | None] = [None] * group.size()
    dist.all_gather_object(all_told, told, group=group)
    reasons = [reason for reason in all_told if reason is not None]
    if reasons:
        if group.rank() == 0:
            print(f"error: {reasons[0]}", file=sys.stderr, flush=True)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's to the others, as soon as one has ended
        leave_together(group)
        sys.exit(2)


def form_team(parallel: Parallel, only: str | None = None) -> Team:
    """The team of this process. Raises SystemExit, and on one process ValueError, where they don't make such teams.

    only: a command of one team alone, as it is called; None is eval.generate, where teams share the videos out.
    """
    rank, world = rank_and_world()
    if parallel == Parallel() and (world == 1 or not only):
        return Team(rank, world)
    told = _obstacle(parallel, world, only)
    if world == 1:
        raise ValueError(told or f"{parallel} is for several processes, and there is one: leave it out")
    find_device()
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    refuse_together(told, dist.group.WORLD)
    team = _find_team(parallel, rank, world)
    if not team.leads:
        logging.getLogger("fps_flex").setLevel(logging.ERROR)
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # which transformers heeds too, imported after this
    return team


def _obstacle(parallel: Parallel, world: int, only: str | None = None) -> str | None:
    """Why so many processes can't be such teams, in a line."""
    try:
        as_whole("parallel.sequence", parallel.sequence)
    except ValueError as error:
        return str(error)
    size, gpus = parallel.size, torch.cuda.device_count()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if parallel.guidance not in (1, 2):
        return f"parallel.guidance is {parallel.guidance}, expected 1 or 2: guidance has two passes"
    if parallel.exchange != "auto" and parallel.sequence == 1:
        return (
            f"parallel.exchange is {parallel.exchange}, of processes that share a video's tokens, and "
            "parallel.sequence is 1: leave it out"
        )
    if only and 1 < world != size:
        return (
            f"{world} processes, of which {size} would make the video: start {size}, or let parallel.sequence times "
            f"parallel.guidance be {world}"
        )
    if world % size or world < size:
        others = "" if only else " or a multiple of it"
        return (
            f"{parallel}: {size} processes make a video, got {world}, expected {size}{others}: torchrun "
            f"--nproc_per_node {size} -m -- {only or 'eval.generate'} ..."
        )
    if gpus and here > gpus:
        return f"{here} processes on {gpus} GPUs, expected a GPU each: torchrun --nproc_per_node {gpus}"
    return None


def _find_team(parallel: Parallel, rank: int, world: int) -> Team:
    """Ranks that follow each other are a sequence, as they are likely to be the nearest; two of these, guidance."""
    ranks = torch.arange(world).view(-1, parallel.guidance, parallel.sequence)
    members, sequence, guidance = (
        dist.new_subgroups_by_enumeration(lists.tolist(), timeout=PATIENCE)[0]
        for lists in (ranks.flatten(1), ranks.flatten(0, 1), ranks.mT.flatten(0, 1))
    )
    return Team(
        rank // parallel.size,
        world // parallel.size,
        parallel.size,
        rank % parallel.size == 0,
        sequence_over(sequence, parallel.exchange) if parallel.sequence > 1 else Whole(),
        OnePassEach(Group.of(guidance)) if parallel.guidance > 1 else in_turn,
        members,
    )
