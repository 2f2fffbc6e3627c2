"""How alike two videos are, frame by frame: PSNR, SSIM, MS-SSIM, and LPIPS and VMAF where their packages are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from train.frames import render, upright_size
from train.videos import open_video, probe

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

Metric = Callable[[Tensor, Tensor], Tensor]

NAMES = {"psnr": "PSNR (dB)", "ssim": "SSIM", "ms_ssim": "MS-SSIM", "lpips": "LPIPS", "vmaf": "VMAF"}
IDENTICAL = 100.0  # dB, in place of infinity
SMALLEST = {"ssim": 11, "ms_ssim": 176, "lpips": 32}  # rows and columns
ALEXNET = "alexnet-owt-7be5be79.pth"
TOGETHER = 16  # frames


def find_metrics(height: int, width: int) -> tuple[dict[str, Metric], dict[str, str]]:
    """What can be measured on frames of so many pixels, and why the rest can't.

    Each takes frames [f, 3, h, w] of a candidate and of its reference in 0 to 1 and gives a number a frame.
    """
    left_out = {
        name: f"frames of {height}x{width} are too small: it needs {least} rows and columns"
        for name, least in SMALLEST.items()
        if min(height, width) < least
    }
    left_out |= {name: reason for name, reason in _find_missing().items() if name not in left_out}
    known = {"psnr": psnr, "ssim": ssim, "ms_ssim": ms_ssim, "lpips": lpips, "vmaf": vmaf}
    return {name: metric for name, metric in known.items() if name not in left_out}, left_out


def _find_missing() -> dict[str, str]:
    """Nothing is downloaded: AlexNet's weights must be where torch.hub keeps them."""
    missing = {}
    weights = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    if not find_spec("torchvision"):
        missing["lpips"] = "torchvision is not installed"
    elif not weights.is_file():
        missing["lpips"] = f"AlexNet's weights are not at {weights}"
    if not find_spec("vmaf_torch"):
        missing["vmaf"] = "vmaf-torch is not installed"
    return missing


def psnr(candidate: Float[Tensor, "f 3 h w"], reference: Float[Tensor, "f 3 h w"]) -> Float[Tensor, " f"]:
    """In dB over all three channels; 100 for equal frames."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    found = peak_signal_noise_ratio(candidate, reference, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return found.clamp(max=IDENTICAL)


def ssim(candidate: Float[Tensor, "f 3 h w"], reference: Float[Tensor, "f 3 h w"]) -> Float[Tensor, " f"]:
    """With the usual Gaussian window of 11 pixels, mean of the three channels."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    return structural_similarity_index_measure(candidate, reference, data_range=1.0, reduction="none")


def ms_ssim(candidate: Float[Tensor, "f 3 h w"], reference: Float[Tensor, "f 3 h w"]) -> Float[Tensor, " f"]:
    """Over the usual five scales."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    return multiscale_structural_similarity_index_measure(candidate, reference, data_range=1.0, reduction="none")


def lpips(candidate: Float[Tensor, "f 3 h w"], reference: Float[Tensor, "f 3 h w"]) -> Float[Tensor, " f"]:
    """With AlexNet; less is more alike."""
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    return learned_perceptual_image_patch_similarity(candidate, reference, reduction="none", normalize=True).flatten()


def vmaf(candidate: Float[Tensor, "f 3 h w"], reference: Float[Tensor, "f 3 h w"]) -> Float[Tensor, " f"]:
    """0 to 100. It looks at motion, so it must get all frames at once."""
    from torchmetrics.functional.video import video_multi_method_assessment_fusion

    candidate, reference = (x.transpose(0, 1)[None] for x in (candidate, reference))
    return video_multi_method_assessment_fusion(candidate, reference)[0]


def compare(
    candidate: Path, reference: Path, metrics: dict[str, Metric], device: torch.device
) -> dict[str, list[float]]:
    """Each metric at each frame. Raises ValueError for videos of different sizes or lengths, ClipError for broken ones.

    A few frames at a time are in memory, unless VMAF is measured.
    """
    check_sizes(candidate, reference)
    found: dict[str, list[float]] = {name: [] for name in metrics}
    pairs = zip_longest(read_frames(candidate), read_frames(reference))
    together = None if "vmaf" in metrics else TOGETHER
    while several := tuple(islice(pairs, together)):
        if any(one is None or other is None for one, other in several):
            lengths = [sum(1 for _ in read_frames(path)) for path in (candidate, reference)]
            raise ValueError(f"{candidate} has {lengths[0]} frames, {reference} {lengths[1]}: expected as many")
        ours, theirs = (_as_batch(frames, device) for frames in zip(*several, strict=True))
        for name, metric in metrics.items():
            found[name] += metric(ours, theirs).double().cpu().tolist()
    return found


def check_sizes(candidate: Path, reference: Path) -> tuple[int, int]:
    """Rows and columns of both. Raises ValueError where they differ, ClipError for what can't be read."""
    ours, theirs = probe(candidate), probe(reference)
    if (ours.height, ours.width) != (theirs.height, theirs.width):
        raise ValueError(
            f"{candidate} is {ours.height}x{ours.width} (rows x columns), {reference} {theirs.height}x{theirs.width}: "
            "expected the same size"
        )
    return ours.height, ours.width


def read_frames(path: Path) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Every frame of a video, upright. Raises ClipError."""
    with open_video(path) as (container, stream):
        for frame in container.decode(stream):
            yield render(frame, *upright_size(frame))


def _as_batch(frames: tuple[UInt8[np.ndarray, "h w 3"], ...], device: torch.device) -> Float[Tensor, "f 3 h w"]:
    return torch.from_numpy(np.stack(frames)).to(device).permute(0, 3, 1, 2).float() / 255


def find_interval(values: list[float], groups: list[str], resamples: int = 10_000) -> tuple[float, float] | None:
    """The middle 95 % of means of groups drawn again with replacement; None for fewer than two groups.

    groups: of each value. Values of one group, such as videos of one prompt, are alike and drawn together.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        return None
    member = np.array([names.index(group) for group in groups])
    sums, counts = np.bincount(member, values), np.bincount(member)
    drawn = np.random.default_rng(0).integers(len(names), size=(resamples, len(names)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), (0.025, 0.975))
    return float(low), float(high)
