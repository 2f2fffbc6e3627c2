"""Measuring along dense trajectories: shared out to processes, and resumable, a file per video and step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fps_flex import FPSAttention
from fps_flex.checks import is_finite
from fps_flex.wan import Wan
from fps_flex.wan.sequence import Sequence, Whole
from train.common.atomic import beside, write_text
from train.common.ranks import rank_and_world
from train.common.work import find_device, progress_bar, wait_for_all

from ..generate.jobs import Job, Settings
from ..generate.maker import Maker, encode_prompts, load_maker
from ..generate.models import TextToVideo
from ..generate.sampling import TIMESTEPS
from ..generate.teams import Team
from .candidates import Candidate
from .errors import compare
from .replay import Planned, Replay, everywhere, in_one_layer, plan_attention
from .result import Part, dump, read_part

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Experiment:
    """What is measured.

    base: the attention in which candidates take the schedule's place. steps: of the sampler, from 0. probe: the
    candidate that is also tried in one layer at a time; None for none. out: folder, whose parts/ hold what is measured.
    """

    model: TextToVideo
    settings: Settings
    base: FPSAttention
    candidates: list[Candidate]
    steps: list[int]
    probe: int | None
    out: Path

    def trajectory(self, job: Job) -> Path:
        return self.out / "parts" / f"{job.name}.pt"

    def part(self, job: Job, step: int) -> Path:
        return self.out / "parts" / f"{job.name}-step{step}.json"

    def is_measured(self, job: Job, step: int) -> bool:
        """One that is cut or broken isn't."""
        try:
            read_part(self.part(job, step))
        except ValueError:
            return False
        return True

    def misses_trajectory(self, job: Job) -> bool:
        complete = all(self.is_measured(job, step) for step in self.steps)
        return not complete and not self.trajectory(job).is_file()


def measure(experiment: Experiment, jobs: list[Job]) -> None:
    """What is there already isn't measured again. Returns when all processes are through.

    Raises ValueError for values that aren't finite, and as `load_maker`.
    """
    rank, world = rank_and_world()
    items = [(job, step) for job in jobs for step in experiment.steps]
    samples = [job for job in jobs[rank::world] if experiment.misses_trajectory(job)]
    todo = [item for item in items[rank::world] if not experiment.is_measured(*item)]
    work = Work(experiment, [*samples, *(job for job, _ in todo)])
    with progress_bar(rank == 0 and bool(todo or samples)) as progress:
        bar = progress.add_task("dense trajectories, steps", total=len(samples) * experiment.settings.steps)
        for job in samples:
            work.sample(job, lambda: progress.advance(bar))
        wait_for_all()
        bar = progress.add_task("forward passes", total=len(todo) * work.passes)
        for job, step in todo:
            work.measure(job, step, lambda: progress.advance(bar))
    wait_for_all()


@dataclass
class Work:
    """One process's part. jobs: whose prompts it needs. The model is loaded when it is first asked for."""

    experiment: Experiment
    jobs: list[Job]
    device: torch.device = field(default_factory=find_device)

    @property
    def passes(self) -> int:
        """Forward passes of the model that a step takes."""
        x = self.experiment
        return 1 + len(x.candidates) + (0 if x.probe is None else x.model.weights.config.layers)

    @cached_property
    def maker(self) -> Maker:
        x = self.experiment
        prompts = sorted({job.prompt for job in self.jobs} | {x.settings.negative_prompt})
        states = encode_prompts(x.model, prompts, self.device, x.out)
        return load_maker(x.model, x.settings, states, self.device, Team(*rank_and_world()))

    @cached_property
    def planned(self) -> list[Planned]:
        """Dense attention, and after it the candidates'."""
        x = self.experiment
        grid = x.model.grid(x.settings.clip.size)
        attentions = [x.model.attention, *(one.attention(x.base) for one in x.candidates)]
        return [plan_attention(one, grid, self.device) for one in attentions]

    def models(self) -> list[Wan]:
        return [self.maker.wan, *([self.maker.low.wan] if self.maker.low else [])]

    def model_at(self, timestep: float) -> Wan:
        low = self.maker.low
        return low.wan if low and timestep < low.boundary * TIMESTEPS else self.maker.wan

    def sample(self, job: Job, after_step: Callable[[], None]) -> None:
        """Keep the latents that dense attention leads to before each step that is measured, with its timestep."""
        seen: list[tuple[Tensor, float]] = []

        def note(_: Wan, args: tuple[Tensor, Tensor, Tensor]) -> None:
            if not seen or args[0] is not seen[-1][0]:  # guidance has a second pass over the same
                seen.append((args[0], args[1][0].item()))

        for wan in self.models():
            wan.sequence, wan.compiled = Whole(), self.device.type == "cuda"
        hooks = [wan.register_forward_pre_hook(note) for wan in self.models()]
        try:
            self.maker.sample(job, after_step)
        finally:
            for hook in hooks:
                hook.remove()
        path = self.experiment.trajectory(job)
        path.parent.mkdir(exist_ok=True)
        with beside(path) as temporary:
            torch.save({step: (seen[step][0].cpu(), seen[step][1]) for step in self.experiment.steps}, temporary)

    @torch.inference_mode()
    def measure(self, job: Job, step: int, after_pass: Callable[[], None]) -> None:
        """A dense pass with all candidates replayed in each layer, and a pass of the whole model with each."""
        x, (dense, *candidates) = self.experiment, self.planned
        latents, timestep = torch.load(x.trajectory(job), weights_only=True)[step]
        wan, text = self.model_at(timestep), self.maker.states[job.prompt].to(self.device)
        latents, wan.compiled = latents.to(self.device), False  # attention is compiled by itself, once for all

        def velocity(sequence: Sequence) -> Float[Tensor, "1 c f h w"]:
            wan.sequence = sequence
            out = wan(latents, torch.tensor([timestep]), text).float()
            after_pass()
            return out

        replay = Replay(dense, candidates)
        exact = velocity(everywhere(replay.attend))
        whole = torch.cat([compare(velocity(everywhere(one)), exact) for one in candidates])
        layers = None
        if x.probe is not None:
            alone = (in_one_layer(i, candidates[x.probe], dense) for i in range(len(wan.blocks)))
            layers = torch.cat([compare(velocity(one), exact) for one in alone])[:, 0].tolist()
        attention = torch.stack(replay.errors, dim=1)
        if not is_finite(exact, attention, whole):
            raise ValueError(f"step {step} of {job.name} gives values that aren't finite: look at the weights")
        of_layers = attention[..., 0].tolist(), attention[..., 1].tolist()
        part = Part(step, timestep / TIMESTEPS, *of_layers, whole[:, 0].tolist(), whole[:, 1].tolist(), layers)
        write_text(x.part(job, step), dump(part))
