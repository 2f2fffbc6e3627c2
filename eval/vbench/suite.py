"""The facts of VBench: its dimensions, its prompts as its package ships them, and the plan of a run's videos."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from fps_flex.checks import show

from ..generate.jobs import Clip
from ..reading import NoFile, is_zip, open_zip, parse, parse_json, read_bytes, read_zipped, write_json

INFO = "VBench_full_info.json"
KEYS = ("prompt_en", "dimension")  # of its entries that are used here
SEEDS, FLICKER_SEEDS = 5, 25  # videos of a prompt; of a temporal_flickering one, of which the static filter keeps 5
FLICKER = "temporal_flickering"


@dataclass(frozen=True)
class Dimension:
    """One of VBench's sixteen scores.

    weight: in its group's mean. minimum, maximum: what the official script maps to 0 and 1. prompts: of the full suite.
    least: that a score can be, where 1 is the most: cosines of text and video may be negative, those of frames are cut
    off at 0, the rest are shares and models' grades. unit: of a video's value, as the package gives it, in the score's.
    framed: videos weigh by their frames in the official mean. (From vbench 0.1.5, vbench/{name}.py.)
    """

    name: str
    group: Literal["quality", "semantic"]
    weight: float
    minimum: float
    maximum: float
    prompts: int
    least: float = 0.0
    unit: float = 1.0
    framed: bool = False

    @property
    def range(self) -> float:
        return self.maximum - self.minimum


DIMENSIONS = {
    dimension.name: dimension
    for dimension in (
        Dimension("subject_consistency", "quality", 1.0, 0.1462, 1.0, 72, framed=True),
        Dimension("background_consistency", "quality", 1.0, 0.2615, 1.0, 86, framed=True),
        Dimension("temporal_flickering", "quality", 1.0, 0.6293, 1.0, 75),
        Dimension("motion_smoothness", "quality", 1.0, 0.706, 0.9975, 72),
        Dimension("dynamic_degree", "quality", 0.5, 0.0, 1.0, 72),
        Dimension("aesthetic_quality", "quality", 1.0, 0.0, 1.0, 93),
        Dimension("imaging_quality", "quality", 1.0, 0.0, 1.0, 93, unit=100.0),
        Dimension("object_class", "semantic", 1.0, 0.0, 1.0, 79, framed=True),
        Dimension("multiple_objects", "semantic", 1.0, 0.0, 1.0, 82, framed=True),
        Dimension("human_action", "semantic", 1.0, 0.0, 1.0, 100),
        Dimension("color", "semantic", 1.0, 0.0, 1.0, 85),
        Dimension("spatial_relationship", "semantic", 1.0, 0.0, 1.0, 84, framed=True),
        Dimension("scene", "semantic", 1.0, 0.0, 0.8222, 86, framed=True),
        Dimension("appearance_style", "semantic", 1.0, 0.0009, 0.2855, 90, least=-1.0, framed=True),
        Dimension("temporal_style", "semantic", 1.0, 0.0, 0.364, 100, least=-1.0),
        Dimension("overall_consistency", "semantic", 1.0, 0.0, 0.364, 93, least=-1.0),
    )
}


@dataclass(frozen=True)
class Entry:
    """One prompt of the suite."""

    prompt: str
    dimensions: tuple[str, ...]


@dataclass(frozen=True)
class Planned:
    """One video that a run needs, as the file `name`; `index` tells apart those of a prompt.

    long: the augmented prompt that it is generated from; None takes `prompt`.
    """

    name: str
    prompt: str
    seed: int
    index: int
    dimensions: tuple[str, ...]
    long: str | None = None


@dataclass(frozen=True)
class Plan:
    """The videos of a run.

    suite: sha256 of the suite's JSON. dimensions: those asked for. quick: prompts a dimension of a run that is not
    comparable; None for all prompts. folder: of the videos, where they aren't made by the run. prompt_map: sha256 of
    the file of long prompts. clip: the size, length and rate expected; None where it is not known.
    """

    suite: str
    dimensions: tuple[str, ...]
    quick: int | None
    videos: tuple[Planned, ...]
    folder: str | None = None
    prompt_map: str | None = None
    clip: Clip | None = None

    def find_videos(self, out: Path) -> Path:
        return Path(self.folder) if self.folder else out / "videos"

    def of(self, dimension: str) -> list[Planned]:
        return [video for video in self.videos if dimension in video.dimensions]

    def expected(self, dimension: str) -> list[Planned]:
        """The official five videos a prompt; without the further ones that only the static filter chooses from."""
        return [video for video in self.of(dimension) if video.index < SEEDS]


def write_plan(path: Path, plan: Plan) -> None:
    facts = {name: value for name, value in asdict(plan).items() if name != "videos"}
    videos = [{name: value for name, value in asdict(video).items() if value is not None} for video in plan.videos]
    write_json(path, {**facts, "videos": videos})


def read_plan(path: Path) -> Plan:
    """Raises NoFile where there is none, ValueError where what is there isn't one."""
    try:
        return parse_plan(str(path), read_bytes(path))
    except NoFile:
        raise NoFile(f"no plan {path}: `python -m eval.vbench plan --out {path.parent}` makes one") from None


def parse_plan(name: str, data: bytes) -> Plan:
    """Raises ValueError, by that name, for what isn't a plan."""
    try:
        plan = parse(Plan, data)
    except ValueError as error:
        raise ValueError(f"{name} is not a plan ({error}): remove it and plan again") from None
    named = {*plan.dimensions, *(name for video in plan.videos for name in video.dimensions)}
    outside = [video.name for video in plan.videos if Path(video.name).name != video.name]
    if not plan.dimensions or not named <= DIMENSIONS.keys() or outside:
        wrong = [*(named - DIMENSIONS.keys()), *outside] or ["no dimension"]
        raise ValueError(f"{name} is not a plan (it has {wrong[0]!r}): remove it and plan again")
    return plan


def load_suite(path: Path) -> list[Entry]:
    """VBench's prompts, in its order, without importing it.

    path: its VBench_full_info.json, a wheel of the package, or a folder with it: the package's own, a site-packages
    folder or a virtual environment. Raises ValueError where it isn't found or isn't in the format.
    """
    entries = parse_json(f"{path}: the suite", read_suite(path))
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: expected a list of VBench's prompts, found {type(entries).__name__}")
    for number, entry in enumerate(entries):
        prompt, dimensions = (entry.get(name) if isinstance(entry, dict) else None for name in KEYS)
        known = isinstance(dimensions, list) and bool(dimensions) and all(x in tuple(DIMENSIONS) for x in dimensions)
        if not (known and isinstance(prompt, str) and prompt.strip()):
            raise ValueError(f"{path}: entry {number} is {show(entry)}, expected prompt_en and dimension of VBench's")
    return [Entry(entry["prompt_en"], tuple(entry["dimension"])) for entry in entries]


def read_suite(path: Path) -> bytes:
    """The bytes of the suite's JSON; `path` as in load_suite. Raises ValueError where there is none."""
    if os.path.isdir(path):
        places = (INFO, f"vbench/{INFO}", f"lib/python3*/site-packages/vbench/{INFO}",
                  f"Lib/site-packages/vbench/{INFO}")  # fmt: skip
        files = [file for place in places for file in sorted(path.glob(place))]
        if not files:
            raise ValueError(f"{path} holds no {INFO}: expected vbench's folder, site-packages or an environment")
        return read_bytes(files[0])
    try:
        data = read_bytes(path)
    except NoFile:
        raise ValueError(f"no suite {path}: expected vbench's {INFO}, its wheel, or a folder with it") from None
    if not is_zip(data):
        return data
    packed = open_zip(str(path), data)
    try:
        return read_zipped(packed, packed.getinfo(f"vbench/{INFO}"), f"{path}:vbench/{INFO}")
    except KeyError:
        raise ValueError(f"{path} holds no vbench/{INFO}: expected a wheel of the vbench package") from None


def find_suite(suite: Path | None, scorer_python: Path | None) -> Path:
    """Where the suite is: as given, else in the scorer's environment, else in this one.

    Raises ValueError where it is nowhere.
    """
    if suite is not None:
        return suite
    if scorer_python is not None:
        return scorer_python.parent.parent
    try:
        return Path(str(metadata.distribution("vbench").locate_file(f"vbench/{INFO}")))
    except metadata.PackageNotFoundError:
        raise ValueError(
            "no suite: --suite names vbench's wheel (pip download --no-deps vbench==0.1.5), "
            f"its {INFO} or a folder with it; or --scorer-python an environment that has it"
        ) from None
