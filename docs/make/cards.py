"""Whether FlexAttention's kernels fit the shared memory of cards that aren't at hand: compiled for each, and not run.

On a GPU, once, what Inductor writes for this attention (heads of 128):
python -m docs.make.cards kernels --generate true

Then anywhere, with the triton that belongs to that torch (Linux, no GPU needed; `pip install triton==3.6.0`):
python -m docs.make.cards kernels --out docs/results/cards.json
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch

from eval.timing import Row, report
from fps_flex.triton_options import FLOAT8, Options, shared_kb, triton_options
from train.common.console import cli_errors, run_command

from .kernels import POINTERS, Source, generate_sources, read_sources

COLUMNS = ("capability", "dtype", "head_dim", "scales", "kernel", "options", "shared_bytes", "there_is", "fits",
           "registers", "stack_bytes")  # fmt: skip

CAPABILITIES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
HEAD_DIMS = (64, 96, 128, 160, 256)  # those of FlexAttention's tables, and one between each


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
