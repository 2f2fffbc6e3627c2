"""FlexAttention's kernels as Inductor writes them for this attention: generated, read, and changed as text."""

from __future__ import annotations

import ast
import os
import re
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from fps_flex import FPSAttention
from fps_flex.triton_options import FLOAT8

FORMS: dict[str, dict[str, Any]] = {
    "pow2": {"scale_format": "pow2"},
    "fp32": {},
    "float8": {"carrier": "float8"},
}
POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32", FLOAT8: "*fp8e4nv"}
DECORATOR = "@triton_heuristics.template("


@dataclass(frozen=True)
class Source:
    """A kernel as Inductor wrote it. signature: types of its arguments. scaled: whether it has a score_mod."""

    text: str
    name: str
    signature: dict[str, str]
    scaled: bool

    @property
    def kernel(self) -> str:
        return "backward" if "arg_DELTA" in self.signature else "forward"

    @property
    def float8(self) -> bool:
        return self.signature["arg_Q"] == POINTERS[FLOAT8]

    def of_heads(self, head_dim: int) -> Source:
        """For heads of another size. Strides stay: they don't change what a kernel needs."""
        rounded = 1 << (head_dim - 1).bit_length()
        sizes = {f"{x}_HEAD_DIM": head_dim for x in ("QK", "V")} | {
            f"{x}_HEAD_DIM_ROUNDED": rounded for x in ("QK", "V")
        }
        return self.with_constants({**sizes, "SAFE_HEAD_DIM": head_dim == rounded})

    def of_dtype(self, dtype: torch.dtype) -> Source:
        """For q, k, v and gradients of another dtype."""
        types = {self.signature["arg_Q"]: POINTERS[dtype]}
        return replace(self, signature={name: types.get(x, x) for name, x in self.signature.items()})

    def with_constants(self, constants: dict[str, Any]) -> Source:
        text = self.text
        for name, value in constants.items():
            text = re.sub(rf"\b{name} : tl\.constexpr = \S+", f"{name} : tl.constexpr = {value}", text)
        return replace(self, text=text)


def generate_sources(folder: Path) -> None:
    """Compile each form's attention, forward and backward, with Inductor's files in a folder. Needs a GPU."""
    if not torch.cuda.is_available():
        raise ValueError("--generate needs a GPU, and there is none here: copy the folder from a machine with one")
    with mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=str(folder.resolve())):
        for options in FORMS.values():
            attention = FPSAttention(engine="triton", **options)
            plan = attention.plan((12, 16, 16), torch.tensor([0.5], device="cuda"))
            q, k, v = torch.randn(3, 1, 4, plan.layout.tokens, 128, device="cuda", dtype=torch.bfloat16)
            trains = attention.carrier == "input"
            result = attention.over_tokens(*(x.requires_grad_(trains) for x in (q, k, v)), plan)
            if trains:
                result.float().square().sum().backward()


def read_sources(folder: Path) -> list[Source]:
    """One of each form and direction, of heads of 128. Raises ValueError where one is missing."""
    found: dict[tuple[bool, bool, str], Source] = {}
    for path in sorted(folder.rglob("*.py")):
        source = parse_source(path.read_text(encoding="utf-8"))
        if source:
            found.setdefault((source.float8, source.scaled, source.kernel), source)
    wanted = [*product((False,), (False, True), ("forward", "backward")), (True, True, "forward")]
    if not found.keys() >= set(wanted):
        raise ValueError(
            f"{folder} has {len(found)} kernels of FlexAttention for heads of 128, expected {len(wanted)}: "
            "write them on a GPU with --generate true"
        )
    return [found[key] for key in wanted]


def parse_source(text: str) -> Source | None:
    """A file of Inductor's; None for one of another kernel or of several, or of heads of another size than 128."""
    if (
        DECORATOR not in text
        or "async_compile" in text
        or not re.search(r"\bQK_HEAD_DIM : tl\.constexpr = 128\b", text)
    ):
        return None
    start = text.index(DECORATOR)
    bare = text[:start] + text[text.index("@triton.jit", start) :]
    signature = ast.literal_eval(_find(r"'signature': (\{.*?\})", text))
    scaled = not re.search(r"post_mod_scores = tmp0\n", text)
    return Source(bare, _find(r"^def (triton_\w+)\(", bare), signature, scaled)


def _find(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    if not match:
        raise ValueError(f"a kernel without {pattern!r}, expected one that torch 2.11 to 2.13 wrote")
    return match[1]
