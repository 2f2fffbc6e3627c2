"""A transformer's weights that were found and checked, but not read yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from .config import WanConfig
from .experts import ALL, Levels
from .files import Spec, TensorFiles
from .fingerprint import digest_held, held_in_file, held_when_read


@dataclass(frozen=True)
class Weights:
    """A transformer's weights: found and checked, but not read yet.

    config: its sizes. specs: of its tensors, by their official names. read: gives a tensor by its official name.
    trained: what a checkpoint of train.fit says about the attention, the codecs and the clips it was trained with;
    None for other weights. settings: what of that goes along when it is exported: the sizes, the attention, the noise
    levels, and what videos are made with. noise_levels: the lowest and the highest that they are for. files: they lie
    in as safetensors; None where `read` costs no memory. merged: of which others and a LoRA they are made;
    None where they are their own.
    """

    config: WanConfig
    specs: dict[str, Spec]
    read: Callable[[str], Tensor]
    trained: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    noise_levels: Levels = ALL
    files: TensorFiles | None = None
    merged: Merged | None = None

    @property
    def unrounded(self) -> Weights:
        """The same, but with the tensors that a LoRA was added to in fp32, for who rounds them to another dtype."""
        return replace(self, specs=self.merged.specs, read=self.merged.read) if self.merged else self

    def fingerprint(self) -> str:
        """The same for a copy elsewhere, another for other weights: a digest as of `digest_held`.

        Of a checkpoint of train.fit also the run, which goes on when it is resumed, and the step; of merged weights
        those of their base, the LoRA and its strength.
        """
        record = self.trained or {}
        of_run = "".join(
            f"{name} {record[key]}, " for name, key in (("run", "run_id"), ("step", "step")) if key in record
        )
        if self.merged:
            base = self.merged.base
            own = "" if base.trained is self.trained else of_run
            return f"{own}{base.fingerprint()}, lora {self.merged.fingerprint} x {self.merged.strength!r}"
        if self.files:
            tensors = {name: x for file in set(self.files.where.values()) for name, x in held_in_file(file).items()}
        else:
            tensors = {
                name: held_when_read(x.dtype, x.shape, partial(self.read, name)) for name, x in self.specs.items()
            }
        return f"{of_run}weights {digest_held(tensors)}"

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor with its official name."""
        return ((name, self.read(name)) for name in self.specs)


@dataclass(frozen=True)
class Merged:
    """base: the weights that a LoRA was added to. path, fingerprint: of the LoRA. specs, read: of the sums, in fp32."""

    base: Weights
    path: str
    fingerprint: str
    strength: float
    specs: dict[str, Spec]
    read: Callable[[str], Tensor]
