"""Several networks as one: A6 is the mean of the softmax of A4 and A5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from movinet_port.errors import MovinetPortError
from movinet_port.fast import InferenceNetwork
from movinet_port.loading import create_model
from movinet_port.model import MoViNet

# The authors' README: A6 "can be constructed as an ensemble of MoViNet-A4 and MoViNet-A5".
A6 = ("a4", "a5")


class EnsembleError(MovinetPortError, ValueError):
    """Networks, or clips, that do not go together."""


class Ensemble(nn.Module):
    """The mean of the members' softmax, as logits: their softmax is that mean.

    Attributes:
        members: the networks, all with the same classes and all base or all stream.
    """

    def __init__(self, members: Sequence[MoViNet]) -> None:
        super().__init__()
        check_members(members)
        self.members = nn.ModuleList(members)

    def forward(self, clip: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the logarithm of the mean probability.

        Args:
            clip: RGB in [0, 1], (batch, 3, frames, height, width): one for all members, or one for
                each, because A4 and A5 are made for clips of other sizes and rates.

        Returns:
            (batch, classes).

        Raises:
            EnsembleError: there are more or fewer clips than members.
        """
        clips = [clip] * len(self.members) if isinstance(clip, Tensor) else clip
        if len(clips) != len(self.members):
            raise EnsembleError(
                f"{len(clips)} clips for {len(self.members)} networks: give one, or one for each"
            )
        logits = [member(part) for member, part in zip(self.members, clips, strict=True)]
        return mean_log_softmax(torch.stack(logits))

    def clean_activation_buffers(self) -> None:
        """Forget the video so far; for stream networks."""
        for member in self.members:
            assert isinstance(member, MoViNet)
            member.clean_activation_buffers()


def mean_log_softmax(logits: Tensor) -> Tensor:
    """Return the logarithm of the mean softmax of (members, batch, classes): (batch, classes)."""
    # In logarithms, a class that all members exclude stays finite.
    each = torch.log_softmax(logits, dim=-1)
    count = torch.tensor(len(logits), dtype=each.dtype, device=each.device)
    return torch.logsumexp(each, dim=0) - count.log()


def check_members(members: Sequence[MoViNet | InferenceNetwork]) -> None:
    """Check that networks can be averaged.

    Raises:
        EnsembleError: there are none, or they differ in classes or in base and stream.
    """
    if not members:
        raise EnsembleError("an ensemble needs at least one network")
    for what, values in (
        ("classes", [member.spec.num_classes for member in members]),
        ("mode", [member.spec.mode for member in members]),
    ):
        if len(set(values)) > 1:
            raise EnsembleError(
                f"networks of an ensemble need the same {what}, found "
                f"{' and '.join(str(value) for value in values)}"
            )
    named = {member.labels for member in members if member.labels is not None}
    if len(named) > 1:
        raise EnsembleError("networks of an ensemble need the same class names in the same order")


def create_ensemble(
    names: Sequence[str] = A6, mode: str = "base", num_classes: int = 600, **overrides: Any
) -> Ensemble:
    """Build an ensemble with random weights; by default A6.

    Args:
        names: networks of the family, as `create_model` takes them.
        mode: "base" or "stream".
        num_classes: number of logits.
        **overrides: as `create_model` takes them, for each network.

    Raises:
        SpecError: an unknown name or mode.
    """
    return Ensemble([create_model(name, mode, num_classes, **overrides) for name in names])
