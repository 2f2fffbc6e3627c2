"""What of the clips is encoded: each in a file of its own, until it is packed into a shard."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..common.atomic import beside, digest_content, write_json
from ..index import is_prepared, parse_index, read_shapes, read_tensors
from .records import NOW, Clip, read_json
from .standardise import find_mp4

logger = logging.getLogger(__name__)


class Encoded:
    """The latents and text states of some clips, and why those that were tried in vain have none.

    content: what each clip's latents are made of, by its name. A clip that is cropped otherwise than before isn't
    encoded.
    """

    def __init__(self, clips: list[Clip], out: Path) -> None:
        self.content = {clip.name: _content_of(clip, out) for clip in clips}
        self.packed = _find_packed(out)
        self.folder, self.broken = out / "work" / "encoded", out / "work" / "broken"

    def has(self, clip: Clip) -> bool:
        return self.content[clip.name] in self.packed or self._file(clip).is_file()

    def why_not(self, clip: Clip) -> str | None:
        """Why a clip that was tried isn't encoded."""
        reason = self._reason(clip)
        return read_json(reason) if reason.is_file() and not self.has(clip) else None

    def is_done(self, clip: Clip) -> bool:
        """Whether it needn't be tried: also where it is in vain."""
        return self.has(clip) or not (self.why_not(clip) or NOW).startswith(NOW)

    def save(self, clip: Clip, latents: Tensor, text: Tensor) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        save_whole({"latents": latents.contiguous(), "text": text.contiguous()}, self._file(clip))

    def give_up(self, clip: Clip, reason: str) -> None:
        write_json(self._reason(clip), reason)

    def read(self, clip: Clip) -> list[Tensor]:
        """Latents and text states. Raises ValueError when their file is broken."""
        shard = self.packed.get(self.content[clip.name])
        return read_tensors(shard, *names_of(clip.name)) if shard else read_tensors(self._file(clip), "latents", "text")

    def forget(self) -> None:
        """What is packed now."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, clip: Clip) -> Path:
        return self.folder / f"{self.content[clip.name]}.safetensors"

    def _reason(self, clip: Clip) -> Path:
        return self.broken / f"{self.content[clip.name]}.json"


def names_of(clip: str) -> tuple[str, str]:
    """Of its latents and its text states in a shard."""
    return f"{clip}/latents", f"{clip}/text"


def _content_of(clip: Clip, out: Path) -> str:
    """The clip's name, and what its latents are made of: the piece and its crop, from the source or from an mp4."""
    identity = f"{clip.digest} {'mp4' if find_mp4(clip, out) else 'source'}"
    return f"{clip.name}-{digest_content(identity)[:16]}"


def _find_packed(out: Path) -> dict[str, Path]:
    """The shard of each content that was packed before; shards that are missing or cut short are named, not used."""
    if not is_prepared(out):
        return {}
    try:
        clips = parse_index(out).clips
    except ValueError as error:
        logger.warning("%s", error)
        return {}
    stored: dict[str, set[str]] = {}
    for shard in sorted({clip.shard for clip in clips}):
        try:
            stored[shard] = set(read_shapes(out / shard))
        except ValueError as error:
            logger.warning("encoding the clips of a shard again: %s", error)
    return {
        clip.content: out / clip.shard for clip in clips if set(names_of(clip.name)) <= stored.get(clip.shard, set())
    }


def save_whole(tensors: dict[str, Tensor], path: Path) -> None:
    with beside(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, metadata={"format": "pt"})
        temporary.chmod(mode)  # safetensors writes for the user alone
