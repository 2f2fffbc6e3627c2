"""Does the asked action happen: a small network that learns from real clips which action one shows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .frechet import shrink

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

BATCH, RATE = 32, 2e-3


def action_of(caption: str) -> str:
    """As train.doom's captions say it; of others the last word, which of moving shapes is their direction."""
    from train.doom.actions import read_caption

    try:
        return read_caption(caption)[1]
    except ValueError:
        return caption.split()[-1] if caption.split() else ""


def see(video: Float[Tensor, "3 f h w"]) -> UInt8[Tensor, "1 f 27 48"]:
    """Of a clip in -1 to 1 what the network sees: grey pictures."""
    return shrink(video).float().mean(1).byte()[None]


class Classifier(nn.Module):
    """Convolutions over time and place, of pictures and of what changes between them. classes: actions, in order."""

    def __init__(self, classes: list[str]) -> None:
        super().__init__()
        self.classes = classes
        self.body = nn.Sequential(
            nn.Conv3d(2, 24, (3, 5, 5), (1, 2, 2), (1, 2, 2)), nn.ReLU(),
            nn.Conv3d(24, 48, 3, 2, 1), nn.ReLU(),
            nn.Conv3d(48, 96, 3, 2, 1), nn.ReLU(),
            nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(96, len(classes)),
        )  # fmt: skip

    def forward(self, seen: UInt8[Tensor, "b 1 f 27 48"]) -> Float[Tensor, "b classes"]:
        x = seen.float() / 255
        return self.body(torch.cat([x[:, :, 1:] - 0.5, 4 * x.diff(dim=2)], dim=1))

    @torch.inference_mode()
    def tell(self, seen: UInt8[Tensor, "1 f 27 48"]) -> str:
        return self.classes[int(self(seen[None].to(next(self.parameters()).device)).argmax())]


def learn(clips: Iterable[tuple[Tensor, str]], steps: int, device: torch.device, seed: int = 0) -> Classifier:
    """From clips in -1 to 1 and their captions. On a CPU the same clips give the same bits."""
    pairs = [(see(video), action_of(caption)) for video, caption in clips]
    seen, classes = torch.stack([x for x, _ in pairs]), sorted({action for _, action in pairs})
    labels = torch.tensor([classes.index(action) for _, action in pairs])
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Classifier(classes).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        drawn = torch.randint(len(labels), (min(BATCH, len(labels)),), generator=generator)
        loss = cross_entropy(net(seen[drawn].to(device)), labels[drawn].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()
