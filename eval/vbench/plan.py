"""Which videos a run needs, under which names."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from train.common.atomic import digest_content, digest_file

from ..generate.prompts import read_lines
from .suite import DIMENSIONS, FLICKER, FLICKER_SEEDS, SEEDS, Entry, Plan, Planned, load_suite, read_suite
from .values import group

UNSAFE = re.compile(r"[/\\\x00-\x1f\x7f]|^\.")
LONGEST = 240  # bytes of a name without .mp4, which leaves room for what is written aside


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is of.

    Args:
        suite: VBench_full_info.json, a wheel of vbench (pip download --no-deps vbench==0.1.5), its folder or an
            environment with it; none looks into the scorer's environment, then into this one.
        dimensions: some of the sixteen; none takes all.
        quick: only so many prompts a dimension, spread over the suite, with one video each: not comparable.
        seed: of the suite's first video; each video has one of its own, which --quick doesn't change.
        prompt_map: a text file of long prompts to generate from, one a line, in the suite's order; the videos are
            named by the short ones.
        videos: a folder of videos that are there already, made by any model and named 'prompt-0.mp4'.
    """

    suite: Path | None = None
    dimensions: list[str] | None = None
    quick: int | None = None
    seed: int = 0
    prompt_map: Path | None = None
    videos: Path | None = None


def make_plan(options: PlanOptions) -> Plan:
    """A prompt's seeds depend on its place in the suite alone, so a quick run's videos are among the full run's.

    options: with a suite, as in `load_suite`. Raises ValueError for what can't be planned.
    """
    chosen, quick = choose_dimensions(options.dimensions), options.quick
    folder, prompt_map = options.videos, options.prompt_map
    if quick is not None and quick < 1:
        raise ValueError(f"quick is {quick}, expected at least 1 prompt a dimension")
    if folder is not None and not folder.is_dir():
        raise ValueError(f"no folder {folder}: expected one of videos named as VBench does, 'prompt-0.mp4'")
    entries = load_suite(options.suite)
    long = read_prompt_map(prompt_map, entries) if prompt_map else {}
    wanted = _pick(entries, chosen, quick)
    numbers = [re.search(r"-(\d+)\.mp4$", file.name) for file in folder.iterdir()] if folder else []
    extra = folder is None or any(SEEDS <= int(number[1]) < FLICKER_SEEDS for number in numbers if number)
    many = FLICKER_SEEDS if extra else SEEDS  # more of a prompt, for the static filter to choose from
    videos: dict[str, Planned] = {}
    for place, prompt in enumerate(dict.fromkeys(entry.prompt for entry in entries)):
        used = wanted.get(prompt, ())
        for index in range(1 if quick else many if FLICKER in used else SEEDS) if used else ():
            dimensions, seed = used if index < SEEDS else (FLICKER,), options.seed + place * FLICKER_SEEDS + index
            video = Planned(name_video(prompt, index), prompt, seed, index, dimensions, long.get(prompt))
            if (twin := videos.setdefault(video.name, video)) is not video:
                raise ValueError(f"several prompts would be named {video.name}: {twin.prompt!r}, {prompt!r}")
    if not videos:
        raise ValueError(f"{options.suite} has no prompt for {', '.join(chosen)}")
    where, digest = str(folder.resolve()) if folder else None, prompt_map and digest_file(prompt_map)
    return Plan(digest_content(read_suite(options.suite)), chosen, quick, (*videos.values(),), where, digest)


def choose_dimensions(
    names: Iterable[str] | None, known: Collection[str] = DIMENSIONS, whose: str = "expected some of"
) -> tuple[str, ...]:
    """In the order of those known; None takes all. Raises ValueError for others, and for none."""
    names = list(known if names is None else names)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"dimensions {', '.join(unknown) or 'is empty'}: {whose} {', '.join(known)}")
    return tuple(name for name in known if name in names)


def _pick(entries: list[Entry], chosen: tuple[str, ...], quick: int | None) -> dict[str, tuple[str, ...]]:
    """The dimensions that each prompt is needed for. A quick run's prompts are spread over each dimension's."""
    needed = []
    for name in chosen:
        prompts = list(dict.fromkeys(entry.prompt for entry in entries if name in entry.dimensions))
        if quick is not None and quick < len(prompts):
            prompts = [prompts[i * len(prompts) // quick] for i in range(quick)]
        needed += [(prompt, name) for prompt in prompts]
    return {prompt: (*names,) for prompt, names in group(needed).items()}


def name_video(prompt: str, index: int) -> str:
    """The official name of a prompt's video, as one that stays in its folder.

    None of VBench's prompts needs it, but where a prompt has a slash, a backslash, a control character or a leading
    dot these are written %2F and so on, and one too long for a file system is cut and ends in a hash. The official
    package doesn't find such names by itself.
    """
    stem = UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", prompt)
    if len(stem.encode()) > LONGEST - len("-24"):
        short = stem.encode()[: LONGEST - 24].decode(errors="ignore")
        stem = f"{short}~{digest_content(prompt)[:16]}"
    return f"{stem}-{index}.mp4"


def read_prompt_map(path: Path, entries: list[Entry]) -> dict[str, str]:
    """prompt -> long prompt, from a line for each entry, or each different prompt, in the suite's order.

    Raises ValueError when the file doesn't fit.
    """
    lines = read_lines(path, "a long prompt")
    while lines and not lines[-1]:
        lines.pop()
    every = [entry.prompt for entry in entries]
    different = list(dict.fromkeys(every))
    if len(lines) not in (len(every), len(different)):
        raise ValueError(f"{path} has {len(lines)} lines, the suite {len(every)} prompts: expected a long one for each")
    if "" in lines:
        raise ValueError(f"{path}: line {lines.index('') + 1} is empty, expected a long prompt")
    prompts = every if len(lines) == len(every) else different
    return dict(zip(reversed(prompts), reversed(lines), strict=True))  # the first of two lines for a prompt counts


def find_clashes(videos: Iterable[Planned]) -> list[tuple[str, str]]:
    """Names that are one on a file system that ignores case, or the form of accents."""
    seen: dict[str, str] = {}
    pairs = ((seen.setdefault(fold(video.name), video.name), video.name) for video in videos)
    return [(first, name) for first, name in pairs if first != name]


def fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def ignores_case(folder: Path) -> bool:
    """Whether a folder's file system takes A and a for one."""
    with NamedTemporaryFile(dir=folder, prefix=".case-a", suffix=".probe") as probe:
        return Path(probe.name).with_name(Path(probe.name).name.swapcase()).exists()


def check_case(folder: Path, plan: Plan) -> None:
    """Raises ValueError where videos of the plan would overwrite each other."""
    clashes = find_clashes(plan.videos)
    if clashes and ignores_case(folder):
        (one, other), more = clashes[0], f" and {len(clashes) - 1} more pairs" if len(clashes) > 1 else ""
        raise ValueError(
            f"{folder} is on a file system that ignores case, where {one!r} and {other!r}{more} are one file: choose "
            "an --out on another file system"
        )


def describe_plan(plan: Plan) -> str:
    counts = Counter(name for video in plan.videos for name in video.dimensions if video.index < SEEDS)
    extra = sum(video.index >= SEEDS for video in plan.videos)
    prompts = len({video.prompt for video in plan.videos})
    lines = [f"{len(plan.videos):,} videos of {prompts:,} prompts for {len(plan.dimensions)} of 16 dimensions"]
    if extra:
        lines.append(f"{extra:,} of them are further seeds of {FLICKER}, which the static filter chooses from")
    if plan.quick:
        lines.append(f"quick: {plan.quick} prompts a dimension, one video each; NOT comparable with published scores")
    lines += [f"  {name:<24}{counts[name]:>5}" for name in plan.dimensions]
    return "\n".join(lines)
