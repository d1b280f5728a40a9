"""Both sides were run: how far apart what they gave is, and how far they may be."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

# The parity floor: how far two implementations of one network may be apart. Largest difference of
# a logit, relative to the largest logit.
LOGIT_BOUND = 2e-5
# Likewise of each state; states are activations, whose small ones say nothing by themselves.
STATE_BOUND = 10 * LOGIT_BOUND
# Of the logits where both sides are computed in float64: nothing but the same function is as near.
# Right networks are a few 1e-15 apart; one weight off by 1e-5 of itself makes some 1e-9.
FUNCTION_BOUND = 1e-12


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far a network is from the one that is right, on the same clips. True: within the bounds.

    Attributes:
        clips: (batch, frames, height, width) of every clip, in order.
        difference: largest difference of a logit, in the clip where it is the largest share.
        magnitude: largest logit of the side that is right, in that clip.
        states: largest difference of a state relative to its largest value; 0 without states.
        top1: share of the clips' videos for which both sides name the same class.
        rms: root mean square difference, as a share of the root mean square logit.
        bound: how far the logits may be apart, as a share of the largest.
        reference: what computed the side that is right.
    """

    clips: tuple[tuple[int, ...], ...]
    difference: float
    magnitude: float
    states: float = 0.0
    top1: float = 1.0
    rms: float = 0.0
    bound: float = LOGIT_BOUND
    reference: str = "TensorFlow"

    @property
    def logits(self) -> float:
        """The largest difference of a logit relative to its clip's largest logit."""
        return self.difference / self.magnitude if self.magnitude else float(self.difference != 0)

    def __bool__(self) -> bool:
        # Not "any greater": a NaN is greater than nothing.
        return self.logits <= self.bound and self.states <= STATE_BOUND


class Tally:
    """Takes what both sides gave, clip by clip, and makes an `Agreement` of it.

    Args:
        bound: how far the logits may be apart, as a share of the largest.
        reference: what computes the side that is right.
    """

    def __init__(self, bound: float = LOGIT_BOUND, reference: str = "TensorFlow") -> None:
        self._found = Agreement((), 0.0, 0.0, bound=bound, reference=reference)
        self._same: list[Tensor] = []
        self._squares = self._total = 0.0

    def add(self, clip: tuple[int, ...], expected: Tensor, found: Tensor) -> None:
        """Compare the logits, (batch, classes), after a clip (batch, frames, height, width)."""
        difference, magnitude = _largest(expected, found)
        worst = dataclasses.replace(self._found, difference=difference, magnitude=magnitude)
        first = not self._found.clips
        self._found = dataclasses.replace(
            worst if first or _exceeds(worst.logits, self._found.logits) else self._found,
            clips=(*self._found.clips, clip),
        )
        if math.isfinite(difference):
            self._same.append(expected.argmax(-1) == found.argmax(-1))
            self._squares += float((expected.double() - found.double()).square().sum())
            self._total += float(expected.double().square().sum())

    def add_state(self, expected: Tensor, found: Tensor, exact: bool = False) -> None:
        """Compare a state; `exact`: any difference counts as infinite."""
        difference, magnitude = _largest(expected, found)
        share = difference / magnitude if magnitude else float(difference != 0)
        if exact and difference != 0:
            share = math.inf
        if _exceeds(share, self._found.states):
            self._found = dataclasses.replace(self._found, states=share)

    def agreement(self) -> Agreement:
        """Return what came out."""
        same = torch.cat(self._same).double().mean() if self._same else torch.zeros(())
        rms = math.sqrt(self._squares / self._total) if self._total else 0.0
        return dataclasses.replace(self._found, top1=float(same), rms=rms)


def _largest(expected: Tensor, found: Tensor) -> tuple[float, float]:
    """Return the largest difference and the largest value; infinite for another shape or type."""
    magnitude = float(expected.double().abs().max())
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return math.inf, magnitude
    return float((expected.double() - found.double()).abs().max()), magnitude


def _exceeds(new: float, old: float) -> bool:
    """Whether `new` is worse; nothing is worse than a NaN."""
    return not new <= old and not math.isnan(old)
