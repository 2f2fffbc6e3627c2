"""The index of a prepared data set: what its shards hold, and what made them.

Shards with an index, not a stream of tar files: any clip can be read alone, so that every pass can shuffle all of
them, a run can go on in the middle of a pass, and processes can share them out, with only the index in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from fps_flex.checks import Triple, as_bool, as_fields, as_instance, as_real, as_triple, as_whole, some
from fps_flex.wan.codecs import Codec, TextEncoder

from .common.atomic import write_json

INDEX = "index.json"
EMPTY_PROMPT = "empty_prompt.safetensors"
Shape = tuple[int, ...]
TEXTS = ("name", "shard", "prompt", "content")


@dataclass(frozen=True)
class CachedClip:
    """A clip that was encoded.

    shard: its file, below the data set's folder. size: frames, rows and columns of its pixels. held_out: for
    validation. content: a digest of the pixels' origin, which a clip that is cropped otherwise has another of.
    """

    name: str
    shard: str
    size: Triple
    prompt: str
    held_out: bool
    content: str


@dataclass(frozen=True)
class Index:
    """All that is known of a prepared data set without reading a shard.

    codec, text: the encoders it was made with, as a configuration names them. fingerprints: theirs, by those names.
    text_length: states of a prompt.
    """

    folder: Path
    fps: float
    codec: dict[str, Any]
    text: dict[str, Any]
    fingerprints: dict[str, str]
    text_length: int
    clips: list[CachedClip]

    def sizes(self) -> list[Triple]:
        return sorted({clip.size for clip in self.clips})

    def common_size(self) -> Triple:
        """That of the most clips."""
        return Counter(clip.size for clip in self.clips).most_common(1)[0][0]


def is_prepared(folder: Path) -> bool:
    return (folder / INDEX).is_file()


def read_index(folder: Path) -> Index:
    """With a look at every shard's header. Raises ValueError when the index or a shard is broken, or one is missing."""
    index = parse_index(folder)
    missing = sorted({clip.shard for clip in index.clips if not (folder / clip.shard).is_file()})
    if missing or not index.clips:
        raise ValueError(f"{folder} lacks {some(missing) or 'clips'}: prepare it again")
    _check_shards(index)
    return index


def parse_index(folder: Path) -> Index:
    """The index alone. Raises ValueError when it is broken, or names a file that is not in the folder."""
    names = ("fps", "codec", "text", "fingerprints", "text_length", "clips")
    try:
        record = as_fields("the index", json.loads((folder / INDEX).read_text(encoding="utf-8")), names)
        return Index(
            folder,
            as_real("fps", record["fps"]),
            *(as_instance(name, record[name], dict) for name in ("codec", "text", "fingerprints")),
            as_whole("text_length", record["text_length"]),
            [_parse_clip(clip) for clip in as_instance("clips", record["clips"], list)],
        )
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{folder / INDEX} is no index of a prepared data set ({error}): prepare it again") from None


def _parse_clip(record: Any) -> CachedClip:
    record = as_fields("a clip", record, ("name", "shard", "size", "prompt", "held_out", "content"))
    name, shard, prompt, content = (as_instance(said_of, record[said_of], str) for said_of in TEXTS)
    path = PurePosixPath(shard)
    if path.is_absolute() or ".." in path.parts or "\0" in shard or not path.parts:
        raise ValueError(f"shard is {shard!r}, expected a file in the data set's folder")
    size, held_out = as_triple("size", record["size"]), as_bool("held_out", record["held_out"])
    return CachedClip(name, shard, size, prompt, held_out, content)


def write_index(index: Index) -> None:
    record = {name: value for name, value in asdict(index).items() if name != "folder"}
    write_json(index.folder / INDEX, record)


def read_shapes(file: Path) -> dict[str, Shape]:
    """Of all tensors, from the header alone. Raises ValueError when the file is cut short, broken, or holds others than
    floating-point ones."""
    with _open(file) as tensors:
        found = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping
        other = [name for name, part in found.items() if part.get_dtype() not in ("F32", "F16", "BF16")]
        if other:
            raise ValueError(f"{file} holds {other[0]} of {found[other[0]].get_dtype()}: prepare it again")
        return {name: tuple(part.get_shape()) for name, part in found.items()}


def read_tensors(file: Path, *names: str) -> list[Tensor]:
    """Copies, so that no page of the file stays in memory. Raises ValueError when the file is broken."""
    from safetensors import SafetensorError

    with _open(file) as tensors:
        try:
            return [tensors.get_tensor(name).clone() for name in names]
        except SafetensorError as error:
            raise _unreadable(file, error) from None


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} can't be read ({str(error).splitlines()[0]}): prepare it again")


def _check_shards(index: Index) -> None:
    """Raises ValueError for a broken shard, a clip that isn't in its shard, and clips of unlike shapes."""
    found: dict[Triple, tuple[str, Shape]] = {}
    for name, size, latents, text in _clip_shapes(index):
        first, expected = found.setdefault(size, (name, (latents, text[1:])))
        if (latents, text[1:]) != expected or len(latents) != 4 or len(text) != 2 or text[0] > index.text_length:
            raise ValueError(
                f"{index.folder} holds {name} with latents {latents} and text {text}, expected those of {first}, "
                f"[C, F, H, W] and at most {index.text_length} states: prepare it again"
            )


def _clip_shapes(index: Index) -> Iterator[tuple[str, Triple, Shape, Shape]]:
    """Name, size, shape of the latents and of the text states of each clip."""
    by_shard = sorted(index.clips, key=lambda clip: clip.shard)
    for shard, clips in groupby(by_shard, key=lambda clip: clip.shard):
        shapes = read_shapes(index.folder / shard)
        for clip in clips:
            names = (f"{clip.name}/latents", f"{clip.name}/text")
            lacking = [name for name in names if name not in shapes]
            if lacking:
                raise ValueError(f"{index.folder / shard} lacks {lacking[0]}: prepare it again")
            yield clip.name, clip.size, *(shapes[name] for name in names)


def check_encoders(index: Index, codec: Codec, text: TextEncoder) -> None:
    """Raises ValueError when the data set was made with other encoders; where theirs lie doesn't matter."""
    for name, prepared, encoder in (("codec", index.codec, codec), ("text", index.text, text)):
        wanted = encoder.spec()
        same = comparable(prepared) == comparable(wanted)
        if same and index.fingerprints.get(name) == encoder.fingerprint():
            continue
        found, expected = index.fingerprints.get(name), encoder.fingerprint()
        unlike = f"; what these are made of differs ({found}; now {expected})" if same else ""
        raise ValueError(
            f"{index.folder} was prepared with {_brief(prepared)}, the model has {_brief(wanted)}{unlike}: prepare it "
            "again, or set the model's to what it was prepared with"
        )
    _check_shapes(index, codec, text)


def _check_shapes(index: Index, codec: Codec, text: TextEncoder) -> None:
    one = {clip.size: clip for clip in index.clips}
    for size, clip in one.items():
        shapes = read_shapes(index.folder / clip.shard)
        found = shapes[f"{clip.name}/latents"], shapes[f"{clip.name}/text"][1:]
        expected = (codec.channels, *codec.latent_size(size)), (text.dim,)
        if found != expected:
            raise ValueError(
                f"{index.folder} holds latents {found[0]} and text states {found[1]} for clips of {size}, the "
                f"encoders give {expected[0]} and {expected[1]}: prepare it again"
            )


def comparable(spec: dict[str, Any]) -> str:
    """What of an encoder must be alike, as text: not where its files lie, nor the type that it computes in."""
    options = {**_options(spec), "path": None, "dtype": None}
    return json.dumps([spec.get("kind"), options], sort_keys=True)


def _options(spec: dict[str, Any]) -> dict[str, Any]:
    record = spec.get("options")
    return record if isinstance(record, dict) else {"options": record}


def _brief(spec: dict[str, Any]) -> str:
    options = ", ".join(f"{name} {value}" for name, value in _options(spec).items())
    return f"{spec.get('kind')} ({options})"
