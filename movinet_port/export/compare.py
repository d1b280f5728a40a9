"""Running an exported network beside the one it was made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from movinet_port.errors import MismatchError
from movinet_port.export.shape import ClipShape, probes
from movinet_port.floor import LOGIT_BOUND
from movinet_port.model import MoViNet
from movinet_port.streams import FRAME_COUNT, State

# Takes a clip and the state before it (none for a base network), gives logits and the state after.
Runner = Callable[[Tensor, State], tuple[Tensor, State]]

# Likewise of each state; states are activations, whose small ones say nothing by themselves.
STATE_BOUND = 10 * LOGIT_BOUND


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far the exported network is from the one it was made from.

    Attributes:
        logits: largest difference of a logit, relative to the largest logit.
        states: likewise of a state, of the worst one; 0 without states.
        clips: (batch, frames, height, width) of every clip that both sides saw.
    """

    logits: float
    states: float
    clips: tuple[tuple[int, int, int, int], ...]

    def __bool__(self) -> bool:
        # Not "any greater": a NaN is greater than nothing.
        return self.logits <= LOGIT_BOUND and self.states <= STATE_BOUND

    def require(self, what: str) -> None:
        """Raise `MismatchError` unless both sides agree."""
        if not self:
            raise MismatchError(
                f"{what} differs from PyTorch: logits by {self.logits:.2e} of the largest "
                f"(expected at most {LOGIT_BOUND:.0e}), states by {self.states:.2e} (expected at "
                f"most {STATE_BOUND:.0e}); nothing was written"
            )


@torch.inference_mode()
def compare(model: MoViNet, run: Runner, shape: ClipShape, seed: int = 0) -> Comparison:
    """Run both sides on random clips of every kind of size that `shape` leaves free.

    A stream network's states are carried from chunk to chunk of a video, on each side its own.

    Args:
        model: the network, in eval mode.
        run: the exported one.
        shape: what the exported one takes.
        seed: of the clips.
    """
    generator = torch.Generator().manual_seed(seed)
    worst = {"logits": 0.0, "states": 0.0}
    clips = []
    for batch, chunks, height, width in probes(shape, model.spec.causal):
        expected_state: State = {}
        if model.spec.causal:
            expected_state = model.init_state(batch, height, width)
        found_state = dict(expected_state)
        for frames in chunks:
            clip = torch.rand((batch, 3, frames, height, width), generator=generator)
            if model.spec.causal:
                expected, expected_state = model.step(clip, expected_state)
            else:
                expected = model(clip)
            found, found_state = run(clip, found_state)
            worst["logits"] = _max(worst["logits"], _relative(expected, found))
            if expected_state.keys() != found_state.keys():
                raise MismatchError(
                    f"the exported network returns the states {', '.join(found_state)}, expected "
                    f"{', '.join(expected_state)}"
                )
            for name, state in expected_state.items():
                difference = _relative(state, found_state[name])
                if name == FRAME_COUNT and difference > 0:
                    difference = float("inf")
                worst["states"] = _max(worst["states"], difference)
            clips.append((batch, frames, height, width))
    return Comparison(**worst, clips=tuple(clips))


def _relative(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return float("inf")
    magnitude = expected.double().abs().max().item()
    difference = (expected.double() - found.double()).abs().max().item()
    return difference / magnitude if magnitude else float(difference != 0)


def _max(a: float, b: float) -> float:
    """Return the larger; NaN if either is, which `max` may lose."""
    return float(torch.maximum(torch.tensor(a).double(), torch.tensor(b).double()))
