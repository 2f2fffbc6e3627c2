"""Videos that can be compared frame by frame: those of one folder a row, looked at before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fps_flex.checks import some
from train.common.faults import ClipError
from train.common.streams import open_video
from train.common.videos import probe

from .similarity import read_frames

NAMED = 5  # of many
SAME_RATE = 0.002  # relative; 24 and 24/1.001 frames a second are the same pictures


@dataclass(frozen=True)
class Row:
    """One way to make the videos, which lie in `folder`. density: of its attention, mean over the sampler's steps."""

    name: str
    folder: Path
    weights: str | None = None
    attention: str | None = None
    density: float | None = None

    def file(self, video: Video) -> Path:
        return self.folder / f"{video.name}.mp4"


@dataclass(frozen=True)
class Video:
    """One video of every row: name.mp4. prompt: it was made of; where nothing says that, the name."""

    name: str
    prompt: str
    caption: str


@dataclass(frozen=True)
class Look:
    """A video's rows and columns of pixels, frames a second, and frames by its packets."""

    path: Path
    size: tuple[int, int]
    fps: float
    frames: int


def pair_folders(reference: Path, candidate: Path) -> list[str]:
    """Names, less .mp4, that both folders have. Raises ValueError where they don't pair."""
    names = {}
    for folder in (reference, candidate):
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder: expected one with mp4s")
        names[folder] = {path.stem for path in folder.glob("*.mp4") if not path.name.startswith(".")}
        if not names[folder]:
            raise ValueError(f"{folder} holds no .mp4")
    both = names[reference] & names[candidate]
    alone = {folder: [f"{name}.mp4" for name in sorted(those - both)] for folder, those in names.items()}
    if which := "; ".join(f"only {folder} has {some(those, NAMED)}" for folder, those in alone.items() if those):
        raise ValueError(f"the folders don't pair: {which}; expected the same names in both")
    if odd := [ascii(name) for name in both if name.encode(errors="replace").decode() != name]:
        raise ValueError(f"{reference} and {candidate} have names that aren't UTF-8: {some(odd, NAMED)}; rename them")
    return sorted(both)


def look_at(rows: list[Row], videos: list[Video]) -> tuple[dict[Video, Look], dict[str, str]]:
    """The reference of each video that every row can be compared with, and why the others are left out, by name.

    Raises ValueError for videos of different sizes, rates or lengths, and where none is left.
    """
    looks: dict[Video, Look] = {}
    left_out: dict[str, str] = {}
    misfits: list[str] = []
    for video in videos:
        try:
            reference, *others = (look(row.file(video)) for row in rows)
            misfits += [misfit for other in others for misfit in _list_misfits(other, reference)]
            looks[video] = reference
        except ClipError as error:
            left_out[video.name] = str(error)
    if misfits:
        raise ValueError(f"{some(misfits, NAMED, '; ')}: expected the same size, rate and number of frames")
    if not looks:
        raise nothing_left(left_out)
    return looks, left_out


def look(path: Path) -> Look:
    """Raises ClipError for what can't be read, and where packets are missing."""
    probed = probe(path)
    with open_video(path) as (container, stream):
        listed = stream.frames
        frames = sum(packet.size > 0 and not packet.is_corrupt for packet in container.demux(stream))
    if frames < listed:
        raise ClipError(f"{path}: is cut short: it holds {frames} of {listed} frames")
    return Look(path, (probed.height, probed.width), probed.fps, frames)


def _list_misfits(ours: Look, theirs: Look) -> list[str]:
    """In what two videos differ. Frames are counted by decoding them where the packets differ. Raises ClipError."""
    misfits = []
    if ours.size != theirs.size:
        sizes = ["x".join(map(str, each.size)) for each in (ours, theirs)]
        misfits.append(f"{ours.path} is {sizes[0]} (rows x columns), {theirs.path} {sizes[1]}")
    if abs(ours.fps / theirs.fps - 1) > SAME_RATE:
        misfits.append(f"{ours.path} has {ours.fps:.6g} frames a second, {theirs.path} {theirs.fps:.6g}")
    if ours.frames != theirs.frames:
        lengths = [sum(1 for _ in read_frames(each.path)) for each in (ours, theirs)]
        if lengths[0] != lengths[1]:
            misfits.append(f"{ours.path} has {lengths[0]} frames, {theirs.path} {lengths[1]}")
    return misfits


def nothing_left(left_out: dict[str, str]) -> ValueError:
    return ValueError(f"no video can be compared: {some([*left_out.values()], NAMED, '; ')}")
