"""What a checkpoint of train.fit says of its run, checked; and its encoders, built as it names them."""

from __future__ import annotations

from typing import Any, TypeVar, get_args

from fps_flex.checks import as_whole, one_of, show
from fps_flex.experts import ALL, as_levels
from fps_flex.wan import Residual
from train.codecs import ByteText, Fixed, PixelCodec
from train.encoders import UMT5Text, WanVAE
from train.ranges import require
from train.release import PartError

CODECS = {kind.class_path(): kind for kind in (PixelCodec, WanVAE, ByteText, UMT5Text)}
SAID = ("codec", "text", "clip", "residual", "shift", "step")

Kind = TypeVar("Kind", bound=Fixed)


def check_trained(path: str, said: dict[str, Any]) -> None:
    """Raises ValueError unless a checkpoint says all of its run that making videos takes, as it should be said."""
    missing = [name for name in SAID if name not in said]
    if missing:
        raise ValueError(f"{path} doesn't say its {', '.join(missing)}: train it on with this version")
    try:
        one_of("residual", said["residual"], get_args(Residual))
        require("shift", said["shift"], above=0)
        as_whole("step", said["step"], least=0)
        as_levels("noise_levels", said.get("noise_levels", ALL))
    except ValueError as error:
        raise ValueError(f"{path} is no checkpoint of this project ({error})") from None


def build(path: str, spec: Any, base: type[Kind], encoders: str | None) -> Kind:
    """A codec or text encoder as a checkpoint describes it. Raises ValueError where it can't be built.

    encoders: folder to look in, in place of that it was trained with.
    """
    kinds = {name: kind for name, kind in CODECS.items() if issubclass(kind, base)}
    named = isinstance(spec, dict) and isinstance(spec.get("init_args"), dict) and spec.get("class_path")
    if not isinstance(named, str) or named not in kinds:
        raise ValueError(
            f"{path} is no checkpoint of this project (it was trained with {show(named or spec)}, expected one of "
            f"{', '.join(kinds)})"
        )
    options = dict(spec["init_args"])
    if encoders and "path" in options:
        options["path"] = encoders
    try:
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
