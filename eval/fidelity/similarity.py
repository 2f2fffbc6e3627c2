"""How alike two videos are, frame by frame: error, SSIM, MS-SSIM, and LPIPS and VMAF where their packages are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import islice, zip_longest
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from train.common.faults import ClipError, Fault
from train.common.frames import render, upright_size
from train.common.streams import open_video

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

Metric = Callable[[Tensor, Tensor], Tensor]

NAMES = {"mse": "MSE", "ssim": "SSIM", "ms_ssim": "MS-SSIM", "lpips": "LPIPS", "vmaf": "VMAF"}
BOUNDS = {"mse": (0.0, 1.0), "ssim": (-1.0, 1.0), "ms_ssim": (0.0, 1.0), "lpips": (0.0, inf), "vmaf": (0.0, 100.0)}
SMALLEST = {"ssim": 11, "ms_ssim": 176, "lpips": 32}  # rows and columns
BORDER = 5  # pixels from a frame's edge that a window of 11 needs
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # weights of MS-SSIM's five (Wang et al. 2003)
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
    weights = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET  # nothing is downloaded
    if not find_spec("torchvision"):
        left_out.setdefault("lpips", "torchvision is not installed")
    elif not weights.is_file():
        left_out.setdefault("lpips", f"AlexNet's weights are not at {weights}")
    if not find_spec("vmaf_torch"):
        left_out["vmaf"] = "vmaf-torch is not installed"
    known = {"mse": mse, "ssim": ssim, "ms_ssim": ms_ssim, "lpips": lpips, "vmaf": vmaf}
    return {name: metric for name, metric in known.items() if name not in left_out}, left_out


def mse(candidate: Float[Tensor, "f 3 h w"], reference: Float[Tensor, "f 3 h w"]) -> Float[Tensor, " f"]:
    """Mean squared error over all three channels; 0 for equal frames alone."""
    return (candidate - reference).square().mean((1, 2, 3), dtype=torch.float64)


def ssim(candidate: Float[Tensor, "f 3 h w"], reference: Float[Tensor, "f 3 h w"]) -> Float[Tensor, " f"]:
    """With the usual Gaussian window of 11 pixels, mean of the three channels and of all places where it fits.

    torchmetrics' own mean is also over windows that look beyond the edge, at the frame's mirror image.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, everywhere = structural_similarity_index_measure(
        candidate, reference, data_range=1.0, reduction="none", return_full_image=True
    )
    return everywhere[..., BORDER:-BORDER, BORDER:-BORDER].mean((1, 2, 3))


def ms_ssim(candidate: Float[Tensor, "f 3 h w"], reference: Float[Tensor, "f 3 h w"]) -> Float[Tensor, " f"]:
    """Over the usual five scales, each at the places where its window fits.

    The contrast of the four larger ones by torchmetrics, whose own MS-SSIM mirrors the edges of the smallest: of unlike
    frames of 176x176 that gave 0.00 for 0.19. In fp32, so that flat bright frames may be 5e-4 off.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    product = torch.ones(len(candidate), device=candidate.device)
    for weight in SCALES[:-1]:
        _, contrast = structural_similarity_index_measure(
            candidate, reference, data_range=1.0, reduction="none", return_contrast_sensitivity=True
        )
        product *= contrast.relu() ** weight
        candidate, reference = (avg_pool2d(x, 2) for x in (candidate, reference))
    return product * ssim(candidate, reference).relu() ** SCALES[-1]


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
    """Each metric at each frame, within its BOUNDS.

    A few frames at a time are in memory, unless VMAF is measured.
    Raises ClipError for videos that are broken or differ in their frames' number or size, and for numbers that aren't
    finite.
    """
    results: dict[str, list[float]] = {name: [] for name in metrics}
    pairs = zip_longest(read_frames(candidate), read_frames(reference))
    together = None if "vmaf" in metrics else TOGETHER
    while several := tuple(islice(pairs, together)):
        _check_alike(candidate, reference, several)
        batches = (torch.from_numpy(np.stack(frames)).to(device) for frames in zip(*several, strict=True))
        ours, theirs = (frames.permute(0, 3, 1, 2).float() / 255 for frames in batches)
        for name, metric in metrics.items():
            numbers = metric(ours, theirs).double().cpu()
            if not numbers.isfinite().all():
                at = len(results[name]) + int(numbers.isfinite().long().argmin())
                raise ClipError(f"{candidate}: {NAMES[name]} is {numbers[~numbers.isfinite()][0]:g} at frame {at}")
            results[name] += numbers.clamp(*BOUNDS[name]).tolist()
    if not all(results.values()):
        raise ClipError(f"{candidate}: has no frame")
    return results


def _check_alike(candidate: Path, reference: Path, pairs: tuple[tuple[np.ndarray | None, ...], ...]) -> None:
    """Raises ClipError where one video ends before the other, or their frames are of more than one size."""
    if any(one is None or other is None for one, other in pairs):
        lengths = [sum(1 for _ in read_frames(path)) for path in (candidate, reference)]
        raise ClipError(f"{candidate} has {lengths[0]} frames, {reference} {lengths[1]}: expected as many")
    sizes = sorted({frame.shape[:2] for pair in pairs for frame in pair})
    if len(sizes) > 1:
        listed = " and ".join("x".join(map(str, size)) for size in sizes)
        raise ClipError(f"frames of {candidate} or {reference} are of {listed} (rows x columns): expected one size")


def read_frames(path: Path) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Every frame of a video, upright. Raises ClipError."""
    with open_video(path) as (container, stream):
        for i, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise Fault(f"is damaged at frame {i}")
            yield render(frame, *upright_size(frame))
