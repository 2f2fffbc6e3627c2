"""How sensitive a model is to FPS attention, by step, layer and head; and schedules that follow from it.

python -m eval.sensitivity --checkpoint CKPT --prompts FILE --out DIR
torchrun --nproc-per-node 8 -m eval.sensitivity --checkpoint CKPT --prompts FILE --out DIR
python -m eval.sensitivity propose --budget 0.15 DIR
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from fps_flex import FPSAttention
from fps_flex.checks import as_whole, at_home, show
from fps_flex.choice import FASTEST
from fps_flex.quant import CodeFormat, Granularity
from fps_flex.schedule import Window
from fps_flex.tiles import plan_tile
from train.common.atomic import check_ours, write_json
from train.common.console import cli_errors, run_command, writable
from train.common.lock import locked
from train.common.ranks import rank_and_world
from train.common.work import wait_for_all

from ..generate.attention import AttentionChanges
from ..generate.command import plan_jobs, read_prompts, resolve_settings
from ..generate.jobs import Job, Options, Settings
from ..generate.loras import LISTS
from ..generate.models import TextToVideo, describe, find_fingerprints, trained_attention
from ..generate.sampling import TIMESTEPS, build_scheduler
from ..generate.sizes import check_size
from ..reading import NoFile, read_json
from ..timing import describe_machine
from .candidates import Candidate, list_candidates
from .measure import Experiment, measure
from .pictures import draw_layers, draw_steps
from .propose import propose
from .result import FILE, gather, read_part, write
from .tables import describe_candidates

IDENTITY = "identity.json"  # what parts in a folder were measured of


def main(
    checkpoint: str,
    out: Path,
    prompt: str | None = None,
    prompts: Path | None = None,
    count: int = 1,
    seed: int = 0,
    every: int = 5,
    windows: list[Window] | None = None,
    granularities: list[Granularity] | None = None,
    codes: list[CodeFormat] | None = None,
    layers: bool = False,
    attention: AttentionChanges | None = None,
    **options: Any,
) -> None:
    """Measure what windows and FP8 change along dense trajectories; a run that was stopped goes on where it was.

    Args:
        checkpoint: as eval.generate's; its weights are run with dense attention.
        out: folder for sensitivity.json and its pictures.
        prompt: what to show.
        prompts: a text file with a prompt a line, in place of `prompt`; more of them may follow later.
        count: trajectories of each prompt.
        seed: of each prompt's first trajectory; its next one has the next.
        every: measure each n-th step of the sampler.
        windows: to try, on T, H, W: 2 is two tiles, 0.4 that share of the axis, null the whole axis; none takes eight
            shares, [] none.
        granularities: to try: tiles per axis that share a scale, or head; none takes 1 and 4, [] none. The presets'
            regimes are always tried too.
        codes: of Q and K, to try: e4m3, int8; none takes those of training. `propose` takes the better ones.
        layers: measure each layer's part in the velocity's error too, which `propose --layers` takes.
        attention: tile, block, scale_format, carrier and engine in place of those of training.
        options: of `Options`.
    """
    out, prompts = at_home(out), prompts and at_home(prompts)
    jobs = plan_jobs(read_prompts(prompt, prompts), count, seed)
    model, settings = resolve_settings(Options(checkpoint=checkpoint, **options))
    experiment = plan_experiment(model, settings, attention, windows, granularities, codes, every, layers, out)
    first = rank_and_world()[0] == 0
    with writable(out), locked(out, "--out") if first else nullcontext():
        if first:
            for name in (FILE, "steps.png", "layers.png"):
                check_ours(out / name)
            check_identity(experiment)
        wait_for_all()
        measure(experiment, jobs)
        if first:
            report(experiment, jobs)


def plan_experiment(
    model: TextToVideo,
    settings: Settings,
    changes: AttentionChanges | None,
    windows: list[Window] | None,
    granularities: list[Granularity] | None,
    codes: list[CodeFormat] | None,
    every: int,
    layers: bool,
    out: Path,
) -> Experiment:
    """Raises ValueError for what doesn't fit the model's grid, and for a schedule, whose place the candidates take."""
    as_whole("every", every)
    base = find_base(model, settings, changes or AttentionChanges())
    model = replace(model, attention=replace(base, schedule="dense", carrier="input", layers=None))
    check_size(model, settings.clip.size)
    layout = model.attention.plan(model.grid(settings.clip.size), torch.zeros(1)).layout
    candidates = list_candidates(layout, windows, granularities, codes or [base.codes])
    steps = [*range(min(every // 2, settings.steps - 1), settings.steps, every)]
    probe = find_probe(candidates) if layers else None
    return Experiment(model, settings, base, candidates, steps, probe, out)


def find_base(model: TextToVideo, settings: Settings, changes: AttentionChanges) -> FPSAttention:
    """The attention in which candidates take the schedule's place: that of training, but for what is named."""
    refused = [name for name in ("schedule", "quantize", "sparse", "layers", "codes") if name in changes.named()]
    if refused:
        raise ValueError(
            f"attention.{refused[0]} is given, and --windows, --granularities and --codes say what to try: leave it out"
        )
    trained = trained_attention(model.weights) or FASTEST
    base = changes.apply(replace(trained, schedule="fps", quantize=True, sparse=True, carrier="input", layers=None))
    if base.tile is None:
        base = replace(base, tile=plan_tile(model.grid(settings.clip.size), block=base.block))
    return base


def find_probe(candidates: list[Candidate]) -> int:
    """The one of middle density, among the joint ones where there are any."""
    kinds = {one.kind for one in candidates}
    able = [i for i, one in enumerate(candidates) if one.kind == "joint" or "joint" not in kinds]
    return sorted(able, key=lambda i: candidates[i].density)[len(able) // 2]


def check_identity(experiment: Experiment) -> None:
    """Raises ValueError for a folder of another model's, grid's or candidates' measurement."""
    path, now = experiment.out / IDENTITY, identify(experiment)
    try:
        before = read_json(path)
    except NoFile:
        write_json(path, now)
        return
    if before == now:
        return
    same = isinstance(before, dict) and before.keys() == now.keys()
    other = next((name for name in now if before[name] != now[name]), "") if same else ""
    what = f"another {other} ({show(before[other])}, now {show(now[other])})" if other else "another version"
    raise ValueError(f"{experiment.out} holds a measurement of {what}: choose another --out")


def identify(experiment: Experiment) -> dict[str, Any]:
    """All that decides what is measured, but for prompts and seeds, as plain data; files by their fingerprints."""
    x = experiment
    settings = {name: value for name, value in asdict(x.settings).items() if name not in ("checkpoint", "low_noise")}
    facts = {
        "grid": x.model.grid(x.settings.clip.size),
        **settings,
        **describe(replace(x.model, attention=x.base)),
        "candidates": [str(one) for one in x.candidates],
        "measured_steps": x.steps,
        "layers": x.probe is not None,
        "fingerprints": find_fingerprints(x.model),
    }
    return json.loads(json.dumps(facts))


def report(experiment: Experiment, jobs: list[Job]) -> None:
    """sensitivity.json, its pictures, and a table of the candidates."""
    x = experiment
    scheduler = build_scheduler(x.settings.sampler, x.settings.steps, x.settings.shift)
    measured = gather(
        [[read_part(x.part(job, step)) for step in x.steps] for job in jobs],
        machine=describe_machine(),
        identity=identify(x),
        grid=[*x.model.grid(x.settings.clip.size)],
        base=asdict(x.base),
        shift=x.settings.shift,
        levels=(scheduler.timesteps.double() / TIMESTEPS).tolist(),
        steps=x.steps,
        videos=[{"prompt": job.prompt, "seed": job.seed} for job in jobs],
        candidates=[one.describe() for one in x.candidates],
        probe=x.probe,
    )
    write(x.out, measured)
    draw_steps(x.out / "steps.png", measured)
    draw_layers(x.out / "layers.png", measured)
    print(describe_candidates(measured))
    print(f"{FILE}, steps.png and layers.png are in {x.out}")


def command(args: list[str] | None = None) -> None:
    """args: the command line, without the command; by default this process's own."""
    args = [*(sys.argv[1:] if args is None else args)]
    prog, about = "python -m eval.sensitivity", f"{__doc__.splitlines()[0]} `propose` finds these."
    with cli_errors("stopped; the same command goes on with what is missing"):
        if args[:1] == ["propose"]:
            run_command(propose, args[1:], prog=f"{prog} propose", description=propose.__doc__.splitlines()[0])
        else:
            run_command(main, args, LISTS, as_positional=False, prog=prog, description=about)
