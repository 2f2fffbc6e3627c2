"""Whether a checkpoint of train.fit says all of its run; and its encoders, built as it names them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from fps_flex.checks import as_fields
from fps_flex.wan.codecs import ByteText, Fixed, PixelCodec
from fps_flex.wan.encoders import UMT5Text, WanVAE
from fps_flex.wan.release import PartError

CODECS = {one.kind: one for one in (PixelCodec, WanVAE, ByteText, UMT5Text)}
SAID = ("codec", "text", "clip", "residual", "shift", "step", "run_id")

Kind = TypeVar("Kind", bound=Fixed)


def check_trained(path: str, said: dict[str, Any]) -> None:
    """Raises ValueError unless a checkpoint says all of its run that making videos takes."""
    missing = [name for name in SAID if name not in said]
    if missing:
        raise ValueError(
            f"{path} doesn't say its {', '.join(missing)}: start a run of this version from it, with --model.checkpoint"
        )


def build(path: str, spec: dict[str, Any], base: type[Kind], encoders: str | None) -> Kind:
    """A codec or text encoder as a checkpoint describes it. Raises ValueError where it can't be built.

    encoders: folder to look in, in place of that it was trained with.
    """
    kinds = {name: kind for name, kind in CODECS.items() if issubclass(kind, base)}
    named = spec["kind"]
    if named not in kinds:
        raise ValueError(
            f"{path} is no checkpoint of this project (it was trained with {named}, expected one of {', '.join(kinds)})"
        )
    try:
        options = dict(as_fields("options", spec["options"], [field.name for field in fields(kinds[named])]))
        if encoders and "path" in options:
            options["path"] = encoders
        return find(kinds[named], **options)
    except PartError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is no checkpoint of this project (its {base.__name__}: {error})") from None


def find(kind: type[Kind], **options: Any) -> Kind:
    """Raises PartError where its files are missing or broken."""
    try:
        return kind(**options)
    except PartError as error:
        raise PartError(f"{error}; --encoders names another folder") from None
