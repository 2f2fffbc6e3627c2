"""A prepared data set: latents and text states in safetensors shards, with an index that says where each clip lies.

Shards with an index, not a stream of tar files: any clip can be read alone, so that every pass can shuffle all of
them, a run can go on in the middle of a pass, and processes can share them out, with only the index in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from .codecs import Codec, TextEncoder
from .order import Pick, as_pick
from .whole import write_text

if TYPE_CHECKING:
    from jaxtyping import Float

INDEX = "index.json"
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class CachedClip:
    """shard: its file. size: frames, rows and columns of its pixels. held_out: for validation."""

    name: str
    shard: str
    size: Triple
    prompt: str
    held_out: bool


@dataclass(frozen=True)
class Index:
    """All that is known of a prepared data set without reading a shard.

    codec, text: the encoders it was made with, as a configuration names them. text_length: states of a prompt.
    """

    folder: Path
    fps: float
    codec: dict[str, Any]
    text: dict[str, Any]
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
    """Raises ValueError when the index is broken, or a shard that it names is missing."""
    try:
        said = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        clips = [CachedClip(**{**clip, "size": tuple(clip["size"])}) for clip in said.pop("clips")]
        index = Index(folder=folder, clips=clips, **said)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / INDEX} is no index of a prepared data set: prepare it again") from None
    missing = sorted({clip.shard for clip in clips if not (folder / clip.shard).is_file()})
    if missing or not clips:
        raise ValueError(f"{folder} lacks {', '.join(missing) or 'clips'}: prepare it again")
    return index


def check_encoders(index: Index, codec: Codec, text: TextEncoder) -> None:
    """Raises ValueError when the data set was made with other encoders; where theirs lie doesn't matter."""
    for held, wanted in ((index.codec, codec.spec()), (index.text, text.spec())):
        options = [{**spec["init_args"], "path": None, "dtype": None} for spec in (held, wanted)]
        if held["class_path"] != wanted["class_path"] or json.loads(json.dumps(options[1])) != options[0]:
            raise ValueError(
                f"{index.folder} was prepared with {_brief(held)}, the model has {_brief(wanted)}: prepare it again, "
                "or set the model's to what it was prepared with"
            )


def _brief(spec: dict[str, Any]) -> str:
    options = ", ".join(f"{name} {value}" for name, value in spec["init_args"].items())
    return f"{spec['class_path'].rpartition('.')[2]} ({options})"


def write_index(index: Index) -> None:
    said = {name: value for name, value in asdict(index).items() if name != "folder"}
    write_text(index.folder / INDEX, json.dumps(said, ensure_ascii=False, indent=1) + "\n")


class CachedClips(Dataset):
    """The clips of a prepared data set that are, or are not, held out for validation; None takes all.

    Items: latents [C, TF, TH, TW], text [L, E], prompt, name, source, index, pass.
    """

    def __init__(self, index: Index, held_out: bool | None) -> None:
        self.index = index
        self.clips = [clip for clip in index.clips if held_out is None or clip.held_out is held_out]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: int | Pick) -> dict[str, Any]:
        index, pass_ = as_pick(key)
        clip = self.clips[index]
        shard = self.index.folder / clip.shard
        latents, text = read_tensors(shard, f"{clip.name}/latents", f"{clip.name}/text")
        return {
            "latents": latents,
            "text": pad_text(text, self.index.text_length),
            "prompt": clip.prompt,
            "name": clip.name,
            "source": str(shard),
            "index": index,
            "pass": pass_,
        }

    def names(self) -> list[str]:
        """What tells these clips from others."""
        return [clip.name for clip in self.clips]

    def buckets(self) -> list[list[int]]:
        """Indices of the clips of each size."""
        return [[i for i, clip in enumerate(self.clips) if clip.size == size] for size in self.index.sizes()]


def read_empty_text(index: Index) -> Float[Tensor, "l e"]:
    """The text states of an empty prompt."""
    return pad_text(*read_tensors(index.folder / "empty_prompt.safetensors", "text"), index.text_length)


def read_tensors(file: Path, *names: str) -> list[Tensor]:
    """Copies, so that no page of the file stays in memory. Raises ValueError when the file is broken."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            return [tensors.get_tensor(name).clone() for name in names]
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} can't be read ({str(error).splitlines()[0]}): prepare it again") from None


def pad_text(text: Float[Tensor, "kept e"], length: int) -> Float[Tensor, "l e"]:
    return F.pad(text, (0, 0, 0, length - len(text)))


def trim_text(text: Float[Tensor, "l e"]) -> Float[Tensor, "kept e"]:
    """Without the zeros at the end."""
    return text[: int(text.any(dim=-1).nonzero().max()) + 1 if text.any() else 0]
