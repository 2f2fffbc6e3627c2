"""What is measured of real clips, and of each row: losses, videos, and what these are like."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fps_flex import FPSAttention
from fps_flex.wan.codecs import Codec
from train.callbacks import read_losses
from train.common.atomic import beside, write_json, write_text
from train.common.videos import write_video
from train.common.work import find_device
from train.data import VideoData

from ..fidelity.pairs import Row as Compared
from ..fidelity.pairs import Video
from ..fidelity.scores import measure as compare_videos
from ..fidelity.summary import summarise
from ..generate.command import resolve_settings
from ..generate.jobs import Job, Options, Settings
from ..generate.models import TextToVideo
from ..generate.prompts import file_name
from ..generate.records import open_records
from ..generate.videos import make_videos
from ..reading import NoFile
from ..timing import describe_machine
from ..vbench.flicker import temporal_flickering
from .actions import Classifier, action_of, learn, see
from .base import CODEC
from .clips import load, open_data, read, spread_out
from .config import BASE, MEASURED, Measures, Plan, read_made
from .frechet import Basis, Features, fit_basis, frechet, spread
from .losses import losses_of_clip
from .measured import REAL, Distance, Looks, Mean, Measured, Real, read_real_measures
from .values import compare_scales_of_v

if TYPE_CHECKING:
    from jaxtyping import Float


def measure_real(plan: Plan) -> None:
    """What rows are compared with: features of real clips, a classifier of their actions, and the prompts."""
    data, wanted, folder, net = open_data(plan), plan.study.measures, plan.out / REAL, Features(find_device())
    classifier, raw = learn_and_watch(data, net, wanted)
    basis, held_out = fit_basis(raw, wanted.videos), [*read(data, True, plan.study.data.val_clips)]
    real, prompts = basis(net.of_all(video for video, _ in held_out)), [caption for _, caption in held_out]
    rows = {"real, held out": look(held_out, classifier)}
    for name, clips in (
        ("real, trained on", [*read(data, False, wanted.videos)]),
        ("real, held out, through the codec", [*through_codec(open_row(plan, BASE, 0)[0].codec, held_out)]),
    ):
        seen = basis(net.of_all(video for video, _ in clips))
        rows[name] = replace(look(clips, classifier), frechet=distance(seen, real))
    keep_real(folder, basis, real, classifier)
    write_text(folder / "search-prompts.txt", "\n".join([*dict.fromkeys(prompts)][: plan.study.search.prompts]))
    asked = [prompts[i] for i in spread_out(len(prompts), wanted.videos)]
    found = Real(len(real), real.shape[1], classifier.classes, rows, asked, describe_machine())
    write_json(folder / MEASURED, asdict(found))


def learn_and_watch(data: VideoData, net: Features, wanted: Measures) -> tuple[Classifier, Float[np.ndarray, "n 512"]]:
    """A classifier of actions, and the features of the clips that it learnt from, which no memory holds at once."""
    raw = []

    def watched() -> Iterator[tuple[Tensor, str]]:
        for video, caption in read(data, False, wanted.classifier_clips):
            raw.append(net(video))
            yield video, caption

    return learn(watched(), wanted.classifier_steps, find_device()), np.stack(raw)


@torch.inference_mode()
def through_codec(codec: Codec, clips: list[tuple[Tensor, str]]) -> Iterator[tuple[Tensor, str]]:
    for video, caption in clips:
        latents = codec.encode(video[None].to(find_device()))
        yield codec.decode(latents)[0].clamp(-1, 1).cpu(), caption


def keep_real(folder: Path, basis: Basis, real: Float[np.ndarray, "n k"], classifier: Classifier) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with beside(folder / "features.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, mean=basis.mean, directions=basis.directions, real=real)
    with beside(folder / "classifier.pt") as temporary:
        torch.save({"classes": classifier.classes, "state": classifier.state_dict()}, temporary)


def read_real(folder: Path) -> tuple[Basis, Float[np.ndarray, "n k"], Classifier]:
    """The inverse."""
    with np.load(folder / "features.npz") as kept:
        basis, real = Basis(kept["mean"], kept["directions"]), kept["real"]
    loaded = torch.load(folder / "classifier.pt", weights_only=True, map_location="cpu")
    classifier = Classifier(loaded["classes"])
    classifier.load_state_dict(loaded["state"])
    return basis, real, classifier.eval().to(find_device())


def open_row(plan: Plan, name: str, seed: int) -> tuple[TextToVideo, Settings]:
    row, measures = plan.rows[name], plan.study.measures
    attention = row.attention if row.weights and isinstance(row.attention, FPSAttention) else None
    how = {"sampler": "euler", "steps": measures.steps, "guidance": measures.guidance, "lossless": True}
    if plan.study.codec:  # wherever it was in training
        how["encoders"] = str(plan.out / CODEC)
    return resolve_settings(Options(str(plan.checkpoint(name, seed)), attention=attention, **how))


def measure_row(plan: Plan, name: str, seed: int) -> None:
    """Leaves measures.json, videos, and the first few of these in a small form; what is there isn't made again."""
    folder = plan.row(name, seed)
    prompts, (model, settings) = read_real_measures(plan).prompts, open_row(plan, name, seed)
    jobs = [Job(file_name(prompt, i), prompt, i) for i, prompt in enumerate(prompts)]
    losses = measure_losses(plan, model, folder / "losses.json")
    kept = open_records(model, settings, folder / "videos")
    make_videos(kept, jobs)
    if (folder / MEASURED).exists():
        return
    looks, frechet = measure_videos(plan, folder, jobs, settings.clip.fps)
    against, fidelity, not_measured = measure_fidelity(plan, name, seed, jobs)
    found = Measured(
        name, seed, model.weights.fingerprint(), describe_machine(), kept.shared["density"], prompts, losses, frechet,
        looks.right_action, looks.flicker, against, fidelity, not_measured, read_curve(plan, name, seed),
        compare_scales_of_v(plan, model) if name == BASE else None,
    )  # fmt: skip
    write_json(folder / MEASURED, asdict(found))


def measure_videos(plan: Plan, folder: Path, jobs: list[Job], fps: float) -> tuple[Looks, Distance]:
    """What they are like beside real ones; those that are shown are kept once more, in a small form."""
    clips = [(load(folder / "videos" / f"{job.name}.mp4"), job.prompt) for job in jobs]
    (folder / "shown").mkdir(exist_ok=True)
    for i, (video, _) in enumerate(clips[: plan.study.measures.shown]):
        write_video(folder / "shown" / f"{i}.mp4", video, fps)
    basis, real, classifier = read_real(plan.out / REAL)
    seen = basis(Features(find_device()).of_all(video for video, _ in clips))
    return look(clips, classifier), distance(seen, real)


def read_curve(plan: Plan, name: str, seed: int) -> dict[str, float] | None:
    """val/loss by the steps made; None of what wasn't trained, or towards another loss than the others'."""
    row = plan.rows[name]
    if row.weights is not None or row.options.get("model.objective", "flow") != "flow":
        return None
    losses = read_losses(plan.run(name, seed))["val/loss"]
    return {str(step + 1 if step else 0): loss for step, loss in losses.items()}


def measure_losses(plan: Plan, model: TextToVideo, file: Path) -> list[list[float]]:
    """[clip, sigma]; kept in a file. Raises ValueError for a loss that isn't finite."""
    try:
        return read_made(file, "grid")["grid"]
    except NoFile:
        device, wanted, data = find_device(), plan.study.measures, open_data(plan)
    wan, grid = model.load(device), []
    for i, (video, prompt) in enumerate(read(data, True, wanted.loss_clips)):
        latents = model.codec.encode(video[None].to(device))
        grid.append(losses_of_clip(wan, latents, model.text([prompt], device), i, wanted.sigmas))
        if not all(map(isfinite, grid[-1])):
            raise ValueError(f"the losses of clip {i} are {grid[-1]}: the training of {file.parent.name} went wrong")
    write_json(file, {"grid": grid})
    return grid


def measure_fidelity(
    plan: Plan, name: str, seed: int, jobs: list[Job]
) -> tuple[str | None, dict[str, Mean], dict[str, str]]:
    """How far the videos are from dense ones of the same noise: of the same weights, or of a trained row the base's;
    which row's these are, means by measure, and what isn't measured.
    """
    against = plan.against(name)
    if name == against:
        return None, {}, {}
    rows = [Compared(one, plan.row(one, seed) / "videos") for one in (against, name)]
    scores = compare_videos(plan.row(name, seed), rows, [Video(job.name, job.name, job.prompt) for job in jobs])
    if scores.left_out:
        video, why = next(iter(scores.left_out.items()))
        there = plan.row(against, seed) / "videos"
        raise ValueError(f"{video} can't be compared ({why}): delete {there}, and the same command makes it again")
    total = summarise(rows[1], scores.of[name], scores.videos)["total"]
    return against, {measure: Mean(**found) for measure, found in total.items()}, scores.not_measured


def distance(sampled: Float[np.ndarray, "a k"], real: Float[np.ndarray, "b k"]) -> Distance:
    return Distance(frechet(sampled, real), spread(sampled, real), len(sampled))


def look(clips: list[tuple[Tensor, str]], classifier: Classifier) -> Looks:
    """Of each clip whether its action is the asked one, and how little it flickers."""
    pictures = (((video + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy() for video, _ in clips)
    return Looks(
        [int(classifier.tell(see(video)) == action_of(caption)) for video, caption in clips],
        [temporal_flickering(frames) for frames in pictures],
    )
