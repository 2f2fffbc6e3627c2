"""What came of a folder of videos: the manifest, a few lines, and two pictures."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from fps_flex.wan.codecs import Codec

from ..cached import CachedClips
from ..common.atomic import write_lines
from ..common.pictures import draw_contact_sheet, save_figure
from ..common.videos import ClipError
from ..index import read_index
from .judge import Limits
from .records import Clip, Source
from .standardise import read_pixels

SHOWN = 12


def write_manifest(path: Path, sources: list[Source], clips: list[Clip]) -> None:
    """A line for each video that can't be used and for each clip: where it is from, every score, kept or why not."""
    by_key = {source.key: source for source in sources}
    unused = [
        {"video": source.video, "prompt": source.prompt, "kept": False, "reasons": [f"unreadable: {source.reason}"]}
        for source in sources
        if source.reason
    ]
    write_lines(path, [*unused, *(_describe(clip, by_key[clip.key]) for clip in clips)])


def _describe(clip: Clip, source: Source) -> dict[str, Any]:
    return {
        "video": clip.video,
        "prompt": clip.prompt,
        "start": clip.start,
        "end": clip.end,
        "kept": not clip.reasons,
        "reasons": clip.reasons,
        "notes": clip.notes,
        "scores": clip.scores,
        "box": asdict(clip.box),
        "size": clip.size,
        "source": {name: getattr(source, name) for name in ("width", "height", "fps", "seconds", "codec")},
        "name": clip.name,
        "source_digest": clip.source,
        "digest": clip.digest,
    }


def describe(sources: list[Source], clips: list[Clip]) -> str:
    """Counts, and each video that can't be used with its reason."""
    kept = sum(not clip.reasons for clip in clips)
    lines = [f"{len(sources)} videos, {len(clips)} clips, {kept} kept"]
    lines += [f"  {count:5} dropped: {kind}" for kind, count in count_reasons(clips).most_common()]
    unusable = [source for source in sources if source.reason]
    lines += [f"  {len(unusable)} videos can't be used:"] if unusable else []
    return "\n".join([*lines, *(f"    {source.video}: {source.reason}" for source in unusable)])


def count_reasons(clips: list[Clip]) -> Counter[str]:
    """How many clips each kind of reason speaks against."""
    kinds = (reason.partition(":")[0].partition(" of ")[0] for clip in clips for reason in clip.reasons)
    return Counter(kinds)


def draw_summary(path: Path, clips: list[Clip], limits: Limits) -> None:
    """Histograms of the scores with their limits, and the reasons."""
    bounds = {"spread": [limits.min_spread], "motion": [limits.min_motion, limits.max_motion]}
    names = sorted({name for clip in clips for name in clip.scores} - {"without_subtitles"})
    figure = Figure(figsize=(4 * (len(names) + 2), 3.2), layout="constrained")
    *plots, lengths, reasons = figure.subplots(1, len(names) + 2)
    for axes, name in zip(plots, names, strict=True):
        values = np.array([clip.scores[name] for clip in clips if name in clip.scores])
        kept = np.array([clip.scores[name] for clip in clips if name in clip.scores and not clip.reasons])
        axes.hist([kept, values], _edges(values), label=["kept", "all"], histtype="stepfilled", alpha=0.5)
        for bound in bounds.get(name, []):
            axes.axvline(bound, color="k", linestyle=":")
        axes.set(title=name, ylabel="clips")
        axes.legend()
    seconds = np.array([clip.end - clip.start for clip in clips])
    lengths.hist(seconds, _edges(seconds))
    lengths.set(title="length of a clip", xlabel="seconds")
    counts = {"kept": sum(not clip.reasons for clip in clips), **count_reasons(clips)}
    reasons.barh(list(counts)[::-1], list(counts.values())[::-1])
    reasons.set(title="verdicts", xlabel="clips")
    save_figure(figure, path)


def _edges(values: np.ndarray) -> np.ndarray:
    """Of 30 bins, however alike the values are."""
    return np.linspace(values.min(), max(values.max(), values.min() + 1e-3), 31)


def draw_decoded(path: Path, out: Path, codec: Codec) -> None:
    """What the first clips of the most common size of the finished training set decode to."""
    index = read_index(out)
    clips, size = CachedClips(index, held_out=None), index.common_size()
    chosen = [i for i, clip in enumerate(clips.clips) if clip.size == size][: SHOWN // 2]
    items = [clips[i] for i in chosen]
    videos = [codec.decode(item["latents"][None].float()).cpu() for item in items]
    draw_contact_sheet(path, torch.cat(videos).clamp(-1, 1), [f"{x['name']}: {x['prompt'][:60]}" for x in items])


def draw_contacts(path: Path, folder: Path, clips: list[Clip], fps: float) -> None:
    """The first kept clips of the most common size."""
    size, _ = Counter(clip.size for clip in clips).most_common(1)[0]
    shown = [clip for clip in clips if clip.size == size][:SHOWN]
    try:
        videos = torch.stack([read_pixels(folder, clip, fps)[:, :: max(1, size[0] // 8)] for clip in shown])
    except ClipError as error:
        print(f"no contact sheet: {error}")
        return
    captions = [f"{clip.video} from {clip.start:.2f} s: {clip.prompt[:60]}" for clip in shown]
    draw_contact_sheet(path, videos.float() / 127.5 - 1, captions)
