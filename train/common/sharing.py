"""How processes share a video's tokens, as a user asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from fps_flex.wan.auto import Exchange


@dataclass(frozen=True)
class SequenceParallel:
    """Sequence parallelism.

    Args:
        sequence: processes that share a video's tokens.
        exchange: how the processes of a sequence meet in attention: ulysses (each gets all tokens of its part of the
            heads), halo (each gets the tiles that its windows reach), or auto, which takes what sends less.
    """

    sequence: int = 1
    exchange: Exchange = field(default="auto", kw_only=True)
