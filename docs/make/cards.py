"""Whether FlexAttention's kernels fit the shared memory of cards that aren't at hand: compiled for each, and not run.

On a GPU, once, what Inductor writes for this attention (heads of 128):
python -m docs.make.cards kernels --generate true

Then anywhere, with the triton that belongs to that torch (Linux, no GPU needed; `pip install triton==3.6.0`):
python -m docs.make.cards kernels --out docs/results/cards.json
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch

from eval.timing import Row, report
from fps_flex import FPSAttention
from fps_flex.triton_options import FLOAT8, Options, shared_kb, triton_options
from train.common.console import cli_errors, run_command

COLUMNS = ("capability", "dtype", "head_dim", "scales", "kernel", "options", "shared_bytes", "there_is", "fits",
           "registers", "stack_bytes")  # fmt: skip

CAPABILITIES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
HEAD_DIMS = (64, 96, 128, 160, 256)  # those of FlexAttention's tables, and one between each
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


def cards(sources: Path, generate: bool = False, out: Path | None = None) -> None:
    """What FlexAttention's kernels need on each card, with its own options and, where those differ, with ours.

    Heads of other sizes than 128, and fp32, are put into the kernels as text.

    Args:
        sources: folder of what Inductor wrote (its TORCHINDUCTOR_CACHE_DIR).
        generate: write it, on the GPU at hand, in place of compiling.
        out: JSON file to write.
    """
    if generate:
        generate_sources(sources)
        return
    report(_rows(read_sources(sources)), out, COLUMNS)


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


def _rows(sources: list[Source]) -> Iterator[Row]:
    for dtype, head_dim, capability, source in product(POINTERS, HEAD_DIMS, CAPABILITIES, sources):
        exists = capability >= (8, 9) or dtype != FLOAT8
        # both need about the same, the one with a score_mod more: it stands for both in what is put in as text
        shown = source.scaled or (dtype, head_dim) == (torch.bfloat16, 128)
        if exists and source.float8 == (dtype == FLOAT8) and shown:
            yield from _compare(source.of_dtype(dtype).of_heads(head_dim), capability, dtype, head_dim)


def _compare(source: Source, capability: tuple[int, int], dtype: torch.dtype, head_dim: int) -> Iterator[Row]:
    """A row with FlexAttention's options, and one with ours where they differ."""
    theirs = flex_options(source.kernel, capability, dtype, head_dim)
    ours = theirs | for_kernel(source.kernel, triton_options(capability, dtype, head_dim))
    there_is = 1024 * shared_kb(capability)
    for whose, options in (("FlexAttention's", theirs), ("ours", ours))[: 1 + (ours != theirs)]:
        needs = compile_kernel(source, capability, options)
        yield {
            "capability": ".".join(map(str, capability)),
            "dtype": str(dtype).removeprefix("torch."),
            "head_dim": head_dim,
            "scales": "fp32" if source.scaled else "pow2",
            "kernel": source.kernel,
            "options": whose,
            **needs,
            "there_is": there_is,
            "fits": needs["shared_bytes"] <= there_is,
            **options,
        }


def flex_options(kernel: str, capability: tuple[int, int], dtype: torch.dtype, head_dim: int) -> Options:
    """What FlexAttention takes by itself on a card: of the tables of the torch that runs this."""
    from torch._inductor.template_heuristics.triton import CUDAConfigHeuristic

    tables = CUDAConfigHeuristic()
    configs = tables.get_flex_attn_bwd_configs if kernel == "backward" else tables.get_flex_attn_fwd_configs
    with mock.patch("torch.cuda.get_device_capability", return_value=capability):
        (config,) = configs(head_dim, dtype)
    return {name.upper() if name.startswith("block") else name: value for name, value in vars(config).items()}


def for_kernel(kernel: str, options: Options) -> Options:
    """Of kernel options those of one direction, without its prefix."""
    prefix = {"forward": "fwd_", "backward": "bwd_"}[kernel]
    return {name.removeprefix(prefix): value for name, value in options.items() if name.startswith(prefix)}


def compile_kernel(source: Source, capability: tuple[int, int], options: Options) -> dict[str, int]:
    """Bytes of shared memory of a block, registers and bytes of stack (spills) of a thread, on a card."""
    triton = _import_triton()
    pipeline = {name: options[name] for name in ("num_stages", "num_warps")}
    blocks = {name: value for name, value in options.items() if name not in pipeline}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(source.signature))}
    with TemporaryDirectory() as folder:
        function = _load(source.with_constants(blocks), Path(folder, "kernel.py"))
        major, minor = capability
        compiled = triton.compile(
            triton.compiler.ASTSource(function, source.signature, {}, aligned),
            target=triton.backends.compiler.GPUTarget("cuda", 10 * major + minor, 32),
            options=pipeline,
        )
        Path(folder, "kernel.cubin").write_bytes(compiled.asm["cubin"])
        usage = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", Path(folder, "kernel.cubin")]
        said = subprocess.run(usage, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", said).groups()  # type: ignore[union-attr]
    return {"shared_bytes": compiled.metadata.shared, "registers": int(registers), "stack_bytes": int(stack)}


def _load(source: Source, path: Path) -> Any:
    """The kernel as triton.jit reads it: out of a file."""
    path.write_text(source.text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("kernel", path)
    assert spec and spec.loader
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return getattr(module, source.name)


def _import_triton() -> Any:
    try:
        import triton
        import triton.compiler
    except ImportError:
        raise ValueError("triton isn't installed: pip install triton==3.6.0, on Linux; no GPU is needed") from None
    return triton


def command(args: list[str] | None = None) -> None:
    """args: the command line, without the command; by default this process's own."""
    with cli_errors("stopped; what was compiled before is written"):
        run_command(cards, args, as_positional=True, prog="python -m docs.make.cards")


if __name__ == "__main__":
    command()
