"""How far a network of lower precision is from the readable one."""

from __future__ import annotations

import torch

from movinet_port.agreement import Agreement, Tally
from movinet_port.fast.network import InferenceNetwork
from movinet_port.model import MoViNet


@torch.no_grad()
def agreement(
    model: MoViNet,
    network: InferenceNetwork,
    *,
    clips: int = 20,
    frames: int = 4,
    size: tuple[int, int] = (64, 64),
    seed: int = 0,
) -> Agreement:
    """Compare two networks on random clips, each a video of its own.

    Args:
        model: the readable network, in eval mode; what it remembers of a video is lost.
        network: the optimised one; likewise.
        clips, frames, size, seed: of the clips, uniform noise over smooth colour; (height, width).

    Returns:
        The figures. Random clips of a random network say little about its accuracy: use the
        trained weights, and for a decision the videos that it will see.
    """
    generator = torch.Generator().manual_seed(seed)
    tally = Tally()
    for _ in range(clips):
        colour = torch.rand(1, 3, frames, 4, 4, generator=generator)
        smooth = torch.nn.functional.interpolate(colour, (frames, *size), mode="trilinear")
        video = (smooth + 0.2 * torch.rand(smooth.shape, generator=generator)) / 1.2
        with model.video(), network.video():
            expected = model(video.to(model.dtype)).double()
            tally.add((1, frames, *size), expected, network(video).double())
    return tally.agreement()
