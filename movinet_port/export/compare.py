"""Running an exported network beside the one it was made from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from movinet_port.agreement import LOGIT_BOUND, STATE_BOUND, Agreement, Tally
from movinet_port.errors import MismatchError
from movinet_port.export.shape import ClipShape, probes
from movinet_port.model import MoViNet
from movinet_port.streams import FRAME_COUNT, State

# Takes a clip and the state before it (none for a base network), gives logits and the state after.
Runner = Callable[[Tensor, State], tuple[Tensor, State]]


def require(agreement: Agreement, what: str) -> None:
    """Raise `MismatchError` unless both sides agree."""
    if not agreement:
        raise MismatchError(
            f"{what} differs from PyTorch: logits by {agreement.logits:.2e} of the largest "
            f"(expected at most {LOGIT_BOUND:.0e}), states by {agreement.states:.2e} (expected at "
            f"most {STATE_BOUND:.0e}); nothing was written"
        )


@torch.inference_mode()
def compare(model: MoViNet, run: Runner, shape: ClipShape, seed: int = 0) -> Agreement:
    """Run both sides on random clips of every kind of size that `shape` leaves free.

    A stream network's states are carried from chunk to chunk of a video, on each side its own.

    Args:
        model: the network, in eval mode.
        run: the exported one.
        shape: what the exported one takes.
        seed: of the clips.
    """
    generator = torch.Generator().manual_seed(seed)
    tally = Tally()
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
            tally.add((batch, frames, height, width), expected, found)
            if expected_state.keys() != found_state.keys():
                raise MismatchError(
                    f"the exported network returns the states {', '.join(found_state)}, expected "
                    f"{', '.join(expected_state)}"
                )
            for name, state in expected_state.items():
                tally.add_state(state, found_state[name], exact=name == FRAME_COUNT)
    return tally.agreement()
