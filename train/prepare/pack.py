"""Pack what was encoded into the shards that training reads, and their index."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Hashable
from pathlib import Path

from ..common.atomic import digest_content
from ..common.ranks import rank_and_world
from ..common.work import for_each, wait_for_all
from ..index import CachedClip, Index, read_shapes, write_index
from ..split import find_sources
from .encoded import Encoded, names_of, save_whole
from .records import Clip
from .settings import Settings

SHARD_CLIPS = 128  # about 1 GB of 480p latents and text states
SHARDS = "shards"

logger = logging.getLogger(__name__)


def pack(settings: Settings, clips: list[Clip], encoded: Encoded, held_out: set[str]) -> None:
    """Shards of one size each, in the order of the clips' content hashes, and the index. held_out: names of clips.

    A shard's name says what it holds, so new ones lie beside the old ones until the index, which takes its place
    whole, names them; only then the old ones go. Whenever this is stopped, one or the other set is there, and the
    shards that were written are not written again.
    """
    out, codec, text, groups = settings.out, settings.codec, settings.text, _group(clips)
    shard = {clip.name: _shard_of(group, encoded) for group in groups for clip in group}
    (out / SHARDS).mkdir(exist_ok=True)
    for_each(
        "pack",
        groups,
        lambda group: _holds(out / shard[group[0].name], group),
        lambda group: _write_shard(out / shard[group[0].name], group, encoded),
    )
    if rank_and_world()[0] == 0:
        cached = [
            CachedClip(x.name, shard[x.name], x.size, x.prompt, x.name in held_out, encoded.content[x.name])
            for group in groups
            for x in group
        ]
        fingerprints = {"codec": codec.fingerprint(), "text": text.fingerprint()}
        write_index(Index(out, settings.fps, codec.spec(), text.spec(), fingerprints, text.length, cached))
        _remove_others(out, {clip.shard for clip in cached})
        encoded.forget()
    wait_for_all()


def choose_held_out(
    clips: list[Clip], named: dict[str, str], share: float, told: frozenset[str] = frozenset()
) -> set[str]:
    """The names of the clips for validation: all of some sources, so that no scene is both trained on and validated.

    named: by a video's key, what the captions say it was cut from; else its name may (see find_sources). A source is
    held out by its hash: those in the lowest `share` of all hashes, at least one, and not all. Of a single source's
    clips some are held out all the same, by their own hashes.

    told: keys of the videos that the captions say are for validation; where any is, those are held out instead.
    """
    if held_out := {clip.name for clip in clips if clip.key in told}:
        return held_out
    if told and rank_and_world()[0] == 0:
        logger.warning("no clip of the split val is left: others are held out, by chance")
    labels = _label_sources(clips, named)
    if len(set(labels)) == 1:
        labels = [clip.digest for clip in clips]
        if rank_and_world()[0] == 0:
            what = "all clips are of one source video" if len(clips) > 1 else "there is one clip"
            logger.warning("%s: val/loss will be of scenes that are trained on", what)
    hashes = {clip.name: int(label[:16], 16) / 2**64 for clip, label in zip(clips, labels, strict=True)}
    lowest, highest = min(hashes.values()), max(hashes.values())
    return {name for name, value in hashes.items() if value == lowest or value < min(share, highest)}


def _label_sources(clips: list[Clip], named: dict[str, str]) -> list[str]:
    """A digest of each clip's source: a video's that is alone by its content, whatever it is called."""
    sources = find_sources([x.video for x in clips], [named.get(x.key, "") for x in clips], [x.source for x in clips])
    contents: dict[Hashable, set[str]] = defaultdict(set)
    for clip, source in zip(clips, sources, strict=True):
        contents[source].add(clip.source)
    several = {source: digest_content(repr(source)) for source in contents}
    return [min(contents[x]) if len(contents[x]) == 1 else several[x] for x in sources]


def form_batches(clips: list[Clip], batch_size: int) -> list[list[Clip]]:
    """Clips of one size each."""
    by_size = defaultdict(list)
    for clip in clips:
        by_size[clip.size].append(clip)
    return [same[i : i + batch_size] for same in by_size.values() for i in range(0, len(same), batch_size)]


def _group(clips: list[Clip]) -> list[list[Clip]]:
    """Clips of one size, in the order of their content hashes, in groups of up to SHARD_CLIPS."""
    return form_batches(sorted(clips, key=lambda clip: (clip.size, clip.digest)), SHARD_CLIPS)


def _shard_of(group: list[Clip], encoded: Encoded) -> str:
    """Named by its clips' size and a digest of their contents."""
    contents = json.dumps([encoded.content[clip.name] for clip in group])
    frames, rows, columns = group[0].size
    return f"{SHARDS}/{frames}x{rows}x{columns}-{digest_content(contents)[:16]}.safetensors"


def _holds(shard: Path, group: list[Clip]) -> bool:
    try:
        return set(read_shapes(shard)) == {name for clip in group for name in names_of(clip.name)}
    except ValueError:
        return False


def _write_shard(shard: Path, group: list[Clip], encoded: Encoded) -> None:
    tensors = {}
    for clip in group:
        tensors |= zip(names_of(clip.name), encoded.read(clip), strict=True)
    save_whole(tensors, shard)


def _remove_others(out: Path, shards: set[str]) -> None:
    """What the index doesn't name."""
    for file in (out / SHARDS).iterdir():
        if f"{SHARDS}/{file.name}" not in shards:
            file.unlink()
