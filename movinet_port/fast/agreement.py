"""How far a network of lower precision is from the readable one."""

from __future__ import annotations

import dataclasses

import torch

from movinet_port.fast.network import InferenceNetwork
from movinet_port.model import MoViNet


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Over random clips.

    Attributes:
        clips: how many.
        top1: share of them on which both name the same class.
        largest: the largest difference of a logit, as a share of its clip's largest logit.
        rms: root mean square difference, as a share of the root mean square logit.
    """

    clips: int
    top1: float
    largest: float
    rms: float


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
    same, largest, squares, total = 0, 0.0, 0.0, 0.0
    for _ in range(clips):
        colour = torch.rand(1, 3, frames, 4, 4, generator=generator)
        smooth = torch.nn.functional.interpolate(colour, (frames, *size), mode="trilinear")
        video = (smooth + 0.2 * torch.rand(smooth.shape, generator=generator)) / 1.2
        model.clean_activation_buffers()
        network.clean_activation_buffers()
        expected = model(video.to(model.stem.conv.weight.dtype)).double()
        found = network(video).double()
        same += int(expected.argmax() == found.argmax())
        difference = found - expected
        largest = max(largest, float(difference.abs().max() / expected.abs().max()))
        squares += float((difference**2).sum())
        total += float((expected**2).sum())
    model.clean_activation_buffers()
    network.clean_activation_buffers()
    return Agreement(clips, same / clips, largest, (squares / total) ** 0.5)
