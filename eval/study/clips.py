"""Clips of a study: real ones, those trained on and those held out as train.fit shares them out; and sampled ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fps_flex import FPSAttention
from fps_flex.checks import show
from fps_flex.tiles import Triple
from fps_flex.wan import WanConfig
from fps_flex.wan.codecs import box_grid
from train.common.faults import ClipError
from train.common.refusals import one_line
from train.common.videos import in_range, probe
from train.data import VideoData
from train.index import is_prepared
from train.sources import read_rows

from ..fidelity.similarity import read_frames
from ..sensitivity.candidates import list_candidates
from .config import SHAPES, Plan, plain

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def open_data(plan: Plan) -> VideoData:
    """Raises ValueError as train.fit does."""
    data = plan.study.data
    how = {"train_clips": data.clips} if data.source == SHAPES else {"folder": plan.folder}
    opened = VideoData(**how, **plain(plan.study.clip), val_clips=data.val_clips, seed=data.seed, workers=0)
    opened.setup()
    return opened


def check_sizes(plan: Plan) -> None:
    """Raises ValueError for a folder of one's own whose clips are prepared, or of other sizes: they would be scaled."""
    clip, folder = plan.study.clip, Path(plan.folder or "")
    if not plan.folder or folder == plan.out / "data":
        return
    if folder.is_dir() and is_prepared(folder):
        raise ValueError(f"{folder} is a prepared data set, which holds no pixels: expected the clips themselves")
    first = folder / read_rows(folder)[0].video
    found = probe(first)
    if (found.height, found.width) != (clip.height, clip.width):
        raise ValueError(
            f"{first} is {found.height}x{found.width} (rows x columns), and the study's clip is {clip.height}x"
            f"{clip.width}: set clip to that, or choose another data.source"
        )


def check_parts(plan: Plan) -> None:
    """Raises ValueError, before hours of work, for parts of a pretraining of which one can't go on from another, and
    whose own clips the study's codec doesn't fit.
    """
    study, parts = plan.study, plan.describe()["pretraining"]
    last, sizes = study.pretraining[-1], parts[-1]["model"].get("wan")
    for file, part in zip(study.pretraining[:-1], parts[:-1], strict=True):
        if (other := part["model"].get("wan")) != sizes:
            raise ValueError(f"{file} has model.wan {show(other)}, and {last} {show(sizes)}: expected the same")
        said = part.get("data")
        own = {name: said[name] for name in plain(study.clip) if isinstance(said, dict) and name in said}
        try:
            size = replace(study.clip, **own).size
            if study.codec:
                box_grid(size, study.codec.box)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None


def check_grid(plan: Plan) -> None:
    """Raises ValueError, before hours of work, for rows and windows that don't fit the clips by the study's codec."""
    study, grid = plan.study, token_grid(plan)
    if grid is None:
        return
    for attention in (study.search.attention, *(row.attention for row in study.rows.values())):
        if isinstance(attention, FPSAttention):
            attention.plan(grid, torch.zeros(1))
    layout = study.search.attention.plan(grid, torch.zeros(1)).layout
    list_candidates(layout, study.search.windows, study.search.granularities)


def token_grid(plan: Plan) -> Triple | None:
    """Tokens of a clip on (T, H, W), by the codec that the study fits; None where it fits none. Raises ValueError for
    a transformer that isn't of that codec.
    """
    study = plan.study
    if study.codec is None:
        return None
    file, sizes = study.pretraining[-1], plan.describe()["pretraining"][-1]["model"].get("wan")
    try:
        config = WanConfig(**sizes)
    except TypeError:
        raise ValueError(f"{file} has model.wan {show(sizes)}, expected a transformer's sizes") from None
    if config.channels != study.codec.channels:
        given = f"{file} has model.wan.channels {config.channels}"
        raise ValueError(f"codec.channels is {study.codec.channels}, and {given}: expected the same")
    return config.grid(box_grid(study.clip.size, study.codec.box))


def read(data: VideoData, held_out: bool, most: int) -> Iterator[tuple[Float[Tensor, "3 f h w"], str]]:
    """Up to `most` clips in -1 to 1, with their captions, always the same ones and spread over all levels."""
    clips = data.val_set if held_out else data.train_set
    for item in map(clips.__getitem__, spread_out(len(clips), most)):
        yield in_range(item["video"]), item["prompt"]


def spread_out(count: int, most: int) -> list[int]:
    """Up to `most` of so many indices."""
    return [i * count // min(most, count) for i in range(min(most, count))]


def load_shown(plan: Plan, row: str, seed: int) -> dict[int, Float[Tensor, "3 f h w"]]:
    """Those of a row's videos that are kept in a small form, by their number. Raises ValueError for broken ones."""
    files = {i: plan.row(row, seed) / "shown" / f"{i}.mp4" for i in range(plan.study.measures.shown)}
    videos = {}
    for i, file in files.items():
        if file.exists():
            try:
                videos[i] = load(file)
            except (ClipError, OSError) as error:
                raise ValueError(f"{one_line(error)}: delete {file}, and the report does without it") from None
            if (found := tuple(videos[i].shape[1:])) != plan.study.clip.size:
                raise ValueError(f"{file} is of {found}, not {plan.study.clip.size} (frames, rows, columns): delete it")
    return videos


def load(path: Path) -> Float[Tensor, "3 f h w"]:
    """A video in -1 to 1."""
    return torch.from_numpy(np.stack([*read_frames(path)])).permute(3, 0, 1, 2).float() / 127.5 - 1
