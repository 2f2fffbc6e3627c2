"""Turn a folder of raw videos into a training set of latents and text states.

python -m train.prepare --config configs/prepare.yaml --source RAW --out DATASET
torchrun --nproc-per-node 8 -m train.prepare --config configs/prepare.yaml --source RAW --out DATASET
"""

from __future__ import annotations

import errno
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from shlex import quote
from typing import Any

from fps_flex.wan import encoders, linear_codec  # noqa: F401 - so that --help and short class names know them
from fps_flex.wan.codecs import Codec, TextEncoder

from ..common.atomic import write_json
from ..common.console import check_writable, cli_errors, run_command, stop
from ..common.lock import locked
from ..common.ranks import rank_and_world, speaks
from ..common.work import wait_for_all
from ..entries import Row
from ..sources import read_rows
from .cut import cut
from .encode import encode
from .encoded import Encoded
from .judge import Limits, judge, measure
from .pack import choose_held_out, pack
from .records import Clip, Source
from .scan import name_captions, scan
from .scorers import Scorer
from .settings import CONFIG, Settings, Stage, as_folder, check_moved, compare, read_settings, scorers_differ
from .standardise import choose_sizes, standardise
from .summary import describe, draw_contacts, draw_decoded, draw_summary, write_manifest

STAGES: tuple[Stage, ...] = ("scan", "cut", "filter", "encode")


def main(
    source: str,
    out: str,
    codec: Codec,
    text: TextEncoder,
    stages: tuple[Stage, ...] = STAGES,
    redo: bool = False,
    frames: int = 81,
    fps: float = 16.0,
    height: int = 480,
    width: int = 832,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    scorers: list[Scorer] | None = None,
    val_share: float = 0.02,
    batch_size: int = 1,
) -> None:
    """Find, cut, judge and encode videos; a run that was stopped goes on where it was.

    Args:
        source: folder of videos with captions: metadata.csv, a .jsonl, videos2caption.json or a .txt beside each.
        out: folder of the training set.
        codec: video -> latents.
        text: prompts -> text states.
        stages: what to do, in this order: scan, cut, filter, standardise (also writes mp4s, and encodes from them),
            encode. Of one left out, what an earlier run did is used; else it is skipped: without cut a video is one
            scene, without filter all clips that are long enough are kept.
        redo: do these stages again, and what depends on them.
        frames: frames of a clip.
        fps: frames a second of a clip.
        height: rows of a clip; other aspect ratios get about the same area.
        width: columns of a clip.
        limits: what a clip must keep to; an earlier run's clips are judged anew where these have changed.
        scorers: scores by learned models, each with a minimum.
        val_share: share of the videos held out for validation, by their content.
        batch_size: clips encoded at a time.
    """
    settings = Settings(
        as_folder("--source", source), as_folder("--out", out), codec, text, stages, frames, fps, height, width,
        limits, scorers or [], val_share, batch_size,
    )  # fmt: skip
    found = name_captions(read_rows(settings.source))
    before, now = check(settings, found)
    (settings.out / "work").mkdir(exist_ok=True)
    with locked(settings.out / "work", "--out") if rank_and_world()[0] == 0 else nullcontext():
        begin(settings, before, now, redo)
        prepare(settings, found)


def check(settings: Settings, found: dict[str, Row]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check what is left to check, and make the folder. Returns the settings of an earlier run, or these, and these.

    Raises ValueError.
    """
    out, now = settings.out, settings.describe()
    before = read_settings(out) or now
    compare(out, before, now)
    if before.get("source") != now["source"]:
        check_moved(settings.source, (row.video for row in found.values()), out)
    settings.check_models()
    check_writable(out, "--out")
    return before, now


def begin(settings: Settings, before: dict[str, Any], now: dict[str, Any], redo: bool) -> None:
    """Write down what is about to be done, and forget what is to be done again."""
    out = settings.out
    _say("\n".join(compare(out, before, now)))
    wait_for_all()  # before this, all have compared
    if rank_and_world()[0] == 0:
        if scorers_differ(before, now):
            shutil.rmtree(out / "work" / "filter", ignore_errors=True)
        if redo:
            _forget(out, settings.stages)
        write_json(out / CONFIG, now)
    wait_for_all()


def prepare(settings: Settings, found: dict[str, Row]) -> None:
    """The stages in turn. found: captions by their key. Raises ValueError when no clip is left."""
    folder, out, stages, fps = settings.source, settings.out, set(settings.stages), settings.fps
    work = out / "work"
    sources = scan(folder, found, work)
    if not {"cut", "filter", "standardise", "encode"} & stages:
        return _say(describe(sources, []))
    clips = cut(folder, sources, settings.frames / fps, work, skip="cut" not in stages)
    if not {"filter", "standardise", "encode"} & stages:
        return _say(describe(sources, [clip for found in clips.values() for clip in found]))
    measured = measure(folder, sources, clips, settings.scorers, work, skip="filter" not in stages)
    judged = judge(measured, sources, settings.limits, settings.scorers, fps)
    judged = choose_sizes(judged, sources, settings.frames, settings.buckets)
    _say("" if settings.scorers else "not scored: aesthetic, Q-Align (no scorer is configured)")
    kept = _report(sources, judged, out)
    if rank_and_world()[0] == 0:
        draw_summary(out / "summary.png", judged, settings.limits)
        draw_contacts(out / "contact.png", folder, kept, fps)
    if "standardise" in stages:
        standardise(folder, kept, fps, out)
    if "encode" in stages:
        _encode(settings, found, sources, judged)


def _encode(settings: Settings, found: dict[str, Row], sources: list[Source], judged: list[Clip]) -> None:
    out = settings.out
    kept = [clip for clip in judged if not clip.reasons]
    encoded = Encoded(kept, out)
    tried = {clip.name: clip for clip in encode(settings, kept, encoded)}
    if any(clip.reasons for clip in tried.values()):
        kept = _report(sources, [tried.get(clip.name, clip) for clip in judged], out)
    named = {key: row.source for key, row in found.items()}
    told = frozenset(key for key, row in found.items() if row.split == "val")
    pack(settings, kept, encoded, choose_held_out(kept, named, settings.val_share, told))
    if rank_and_world()[0] == 0:
        draw_decoded(out / "decoded.png", out, settings.codec)
    _say(f"{len(kept)} clips are in {out}: python -m train.fit --data.folder {quote(str(out))}")


def _report(sources: list[Source], judged: list[Clip], out: Path) -> list[Clip]:
    """Write the manifest and say what came of all; returns the clips that are kept. Raises ValueError for none."""
    if rank_and_world()[0] == 0:
        write_manifest(out / "manifest.jsonl", sources, judged)
    _say(describe(sources, judged))
    kept = [clip for clip in judged if not clip.reasons]
    if not kept:
        raise ValueError(f"no clip is left: {out / 'manifest.jsonl'} says why")
    return kept


def _forget(out: Path, stages: tuple[Stage, ...]) -> None:
    """Remove what these stages made, and the stages after them."""
    order = ("scan", "cut", "filter")
    first = min((order.index(stage) for stage in stages if stage in order), default=len(order))
    for name in order[first:]:
        shutil.rmtree(out / "work" / name, ignore_errors=True)
    if "standardise" in stages or first < len(order):
        shutil.rmtree(out / "clips", ignore_errors=True)
    for name in ("shards", "work/encoded", "work/broken"):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / "index.json").unlink(missing_ok=True)


def _say(text: str) -> None:
    if speaks() and text:
        print(text, flush=True)


def command(args: list[str] | None = None) -> None:
    """args: the command line, without the command; by default this process's own."""
    with cli_errors("stopped; the same command goes on where it was"):
        try:
            run_command(
                main,
                args,
                as_positional=False,
                description=__doc__.splitlines()[0],
                fail_untyped=False,
                prog="python -m train.prepare",
            )
        except Exception as error:
            if getattr(error, "errno", None) != errno.ENOSPC and "No space left" not in str(error):
                raise
            stop("the disk is full; what is done is kept, and the same command goes on where it was", code=1)


if __name__ == "__main__":
    command(sys.argv[1:])
