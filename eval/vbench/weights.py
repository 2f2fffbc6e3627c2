"""The files that the official package needs, where they are from, and what each dimension needs: weights.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from train.common.atomic import digest_file

STATIC_FILTER = "static_filter"


@dataclass(frozen=True)
class Weight:
    """A file under VBench's cache folder.

    source: where the official code, or that of the model, has it from; how says what lies there: the file, a zip that
    holds it as `member`, or a git repository for the folder that it is in.
    size: bytes it must have, or None where only `least` is known: the bytes of the tensors in it, or near them.
    sha256: its checksum, or the first digits of it; empty where it isn't known.
    """

    path: str
    source: str
    size: int | None = None
    least: int = 1
    sha256: str = ""
    how: Literal["file", "zip", "git"] = "file"
    member: str = ""

    def find_problem(self, folder: Path) -> str | None:
        file = folder / self.path
        if not file.is_file():
            return f"missing {file}"
        size, wanted = file.stat().st_size, f"{self.bytes:,}{' at least' if self.size is None else ''}"
        if size < self.least or self.size not in (None, size):
            return f"wrong size: {file} has {size:,} bytes, expected {wanted}"
        if self.sha256 and not (digest := digest_file(file)).startswith(self.sha256):
            return f"wrong checksum: {file} has sha256 {digest}, expected {self.sha256}"
        return None

    @property
    def bytes(self) -> int:
        """Exact, or the least there can be."""
        return self.least if self.size is None else self.size

    def describe_size(self) -> str:
        if self.how == "git":
            return "a few megabytes"
        if self.size is not None:
            return f"{self.size:,} bytes"
        return f"about {show_bytes(self.least)}" if self.least > 1 else "less than a megabyte"


def show_bytes(count: int) -> str:
    """In decimal units, as disks and downloads are measured."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} bytes"


_read = yaml.safe_load(Path(__file__).with_name("weights.yaml").read_text(encoding="utf-8"))
FILES = {name: Weight(**entry) for name, entry in _read["files"].items()}
EVERY = ("vbench", "torch", "torchvision", "numpy", "cv2", "decord")
# what a dimension needs beyond EVERY: packages by their name to import, weights
NEEDS: dict[str, tuple[tuple[str, ...], tuple[Weight, ...]]] = {
    name: (tuple(needs["packages"]), tuple(FILES[file] for file in needs["files"]))
    for name, needs in _read["needs"].items()
}
