"""What flows into each layer of a MoViNet, computed from the reference's activations and states."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from movinet_port.model import MoViNet
from movinet_port.streams import FRAME_COUNT, STREAM_BUFFER
from movinet_port.wiring import INPUT, wiring
from parity.comparison import Comparison

# Operations that need more than their input, or whose other hypotheses say more.
_NOT_ALONE = ("window mean", "clip mean", "encoding")

# Largest share by which an argument may differ: only copies and sums of float32 lie between.
_SAME = 1e-6


@dataclasses.dataclass(frozen=True)
class Change:
    """How an argument or a state differs from the reference's."""

    cause: str
    detail: str
    mend: str
    parameter: str | None = None


class ReferenceInputs:
    """The arguments that each layer should get.

    Args:
        comparison: of a MoViNet.
    """

    def __init__(self, comparison: Comparison) -> None:
        network = comparison.model.network
        assert network is not None
        assert isinstance(network, MoViNet)  # the diagnosis is not for optimised ones
        self.network = network
        self.comparison = comparison
        self.nodes = wiring(network.spec)

    def inputs(self, tap: str) -> list[Tensor] | None:
        """Return the first argument of a tap's module for each chunk, float64; None if unknown."""
        if tap == INPUT:
            return None
        values = [self._input(tap, number) for number in range(len(self.comparison.chunks))]
        return None if any(value is None for value in values) else values  # type: ignore[return-value]

    def value(self, tap: str, number: int) -> Tensor:
        """Return the reference's value of a tap for one chunk, float64."""
        return torch.from_numpy(self.comparison.expected[number].activations[tap]).double()

    def state_before(self, name: str, number: int) -> Tensor:
        """Return the reference's state before a chunk, float64; zeros before the first."""
        expected = self.comparison.expected
        value = torch.from_numpy(expected[max(number - 1, 0)].states[name]).double()
        return value if number else torch.zeros_like(value)

    def frames_before(self) -> list[int]:
        """Return how many frames of the video came before each chunk."""
        frames = [part.shape[2] for part in self.comparison.chunks]
        return [sum(frames[:number]) for number in range(len(frames))]

    def pools_before(self, tap: str) -> list[tuple[Tensor, int]]:
        """Return (sum of the frames' means, number of frames) before each chunk."""
        states = self._states(tap)
        seen = self.frames_before()
        if not states:
            return [(torch.zeros(1, dtype=torch.float64), 0) for _ in seen]
        return [(self.state_before(states[0], number), count) for number, count in enumerate(seen)]

    def residual_parts(self, layer: str) -> dict[str, list[Tensor]]:
        """Return what a layer's residual sum could be made of."""
        branch, skip = self.nodes[layer].sources
        (before,) = self.nodes[f"{layer}.expansion.conv"].sources
        parts = {"the branch": self._values(branch), "the skip": self._values(skip)}
        if skip != before:
            parts["the layer's input"] = self._values(before)
        return parts

    def gate_parts(self, tap: str) -> tuple[list[Tensor], list[Tensor]]:
        """Return the gates and what they gate."""
        gates, gated = self.nodes[tap].sources
        return self._values(gates), self._values(gated)

    def _values(self, tap: str) -> list[Tensor]:
        return [self.value(tap, number) for number in range(len(self.comparison.chunks))]

    def wrong_arguments(self, tap: str, args: Sequence[tuple[Any, ...]]) -> list[Change]:
        """Return how what a module was given differs from what the reference's layer gets."""
        changes: dict[Change, None] = {}
        if tap == "classifier":  # Its module is given what the convolutions in it are.
            return []
        for number, given in enumerate(args):
            right = self._input(tap, number)
            if right is None or not given or not isinstance(given[0], Tensor):
                continue
            if not _near(given[0].double(), right):
                change = self._explain_input(tap, number, given[0].double(), right)
                changes[change] = None
            for position, name in self._arguments(tap):
                if position >= len(given) or not isinstance(given[position], Tensor):
                    continue
                expected = self.state_before(name, number)
                if not _near(given[position].double(), expected):
                    changes[self._explain(name, number, given[position].double())] = None
        # One explanation for each state is enough: the first chunk's. For what is pooled the last
        # one's: in a single frame all means are the same.
        first: dict[str | None, Change] = {}
        for change in changes:
            if change.parameter is None:
                first[None] = change
            first.setdefault(change.parameter, change)
        return list(first.values())

    def recompute(self, tap: str, module: nn.Module) -> list[Tensor] | None:
        """Return a module's outputs on the reference's arguments, as the module computes."""
        states = self._arguments(tap)
        if not states and tap in self.nodes and self.nodes[tap].operation in _NOT_ALONE:
            return None
        outputs = []
        reference = next(module.parameters(), None)
        dtype = torch.float32 if reference is None else reference.dtype
        with torch.no_grad():
            for number in range(len(self.comparison.chunks)):
                x = self._input(tap, number)
                if x is None:
                    return None
                arguments = [x.to(dtype)]
                for _, name in states:
                    state = self.state_before(name, number)
                    arguments.append(state.to(torch.int64 if name == FRAME_COUNT else dtype))
                out = module(*arguments)
                outputs.append((out[0] if isinstance(out, tuple) else out).double())
        return outputs

    def explain_state(self, name: str, number: int, own: Tensor) -> Change:
        """Say how a state after a chunk differs from the reference's."""
        return self._explain(name, number + 1, own)

    def owner(self, state: str) -> str:
        """Return the layer that a state belongs to."""
        owner = state.rpartition(".")[0]
        return "pool" if owner == "head" else owner or state

    def _explain(self, name: str, number: int, own: Tensor) -> Change:
        """Say how a state at the beginning of chunk `number` differs from the reference's."""
        mend = (
            f"Hand on {name} from clip to clip, and start each video with init_state() or "
            f"clean_activation_buffers()."
        )

        def change(detail: str) -> Change:
            return Change("stream-state", detail, mend, name)

        if number == 0:
            return change("stale: it is not zero at the beginning of the video")
        right = self.state_before(name, number)
        if own.shape != right.shape:
            return Change("unknown", f"has shape {tuple(own.shape)}", mend, name)
        if name == FRAME_COUNT:
            count = float((own - right).flatten()[0])
            if float(own.abs().max()) == 0:
                return change("missing: it is 0 again")
            return change(f"off by {count:+g} frames")
        if float(own.abs().max()) == 0:
            return change("missing: it is zero again")
        for earlier in range(number):
            if _near(own, self.state_before(name, earlier)):
                return change(f"stale: it is the one before clip {earlier}")
        shifted = self._shift(name, number, own)
        if shifted is not None:
            return change(f"off by {shifted} frame{'s' if abs(shifted) > 1 else ''}")
        initial = self.comparison.model.initial.get(name)
        if initial is not None and float(initial.abs().max()) > 0:
            return change("stale: it started from another video")
        scale = float((own * right).sum() / (right * right).sum())
        if _near(own, scale * right):
            return change(f"{scale:.4g} times what it should be")
        return Change("stream-state", "neither the reference's nor an earlier one", mend, name)

    def _shift(self, name: str, number: int, own: Tensor) -> int | None:
        """Return by how many frames a stream buffer is too old."""
        if not name.endswith(STREAM_BUFFER) or number == 0:
            return None
        conv = next(tap for tap, node in self.nodes.items() if name in node.states)
        frames = [self.state_before(name, 0)]
        frames += [
            x[:, :, frames[0].shape[2] :]
            for n in range(number)
            if (x := self._input(conv, n)) is not None
        ]
        whole, size = torch.cat(frames, dim=2), own.shape[2]
        for back in range(1, whole.shape[2] - size + 1):
            if _near(own, whole[:, :, whole.shape[2] - size - back : whole.shape[2] - back]):
                return back
        return None

    def _explain_input(self, tap: str, number: int, own: Tensor, right: Tensor) -> Change:
        for name in self._buffers(tap) if own.shape == right.shape else ():
            size = self.state_before(name, number).shape[2]
            if _near(own[:, :, size:], right[:, :, size:]):
                return self._explain(name, number, own[:, :, :size])
        if tap.endswith(
            ("squeeze_excitation.reduce.conv", "squeeze_excitation.positional_encoding")
        ):
            return self._explain_pooled(tap, number, own, right)
        kind = _rounded_to(own, right)
        if kind is not None:
            return Change("precision", f"its input comes in {kind}", f"Give {tap} float32.")
        if own.shape == right.shape:
            order = _channel_order(own, right)
            if order:
                return Change(
                    "channel-order",
                    "its input's channels are in another order",
                    f"Give {tap} its input's channels in the reference's order.",
                )
        dropout = self.network.classifier.dropout
        if tap == "classifier.output.conv" and dropout.training and dropout.p > 0:
            return Change("unknown", "dropout is on in front of it", "Call eval() on the network.")
        return Change(
            "unknown",
            "its input is not what the reference computes",
            f"Look at what is computed in front of {tap}.",
        )

    def _explain_pooled(self, tap: str, number: int, own: Tensor, right: Tensor) -> Change:
        mend = f"Give {tap} the mean over the video so far, then the mean of each frame."
        half = right.shape[1] // 2
        first, second = right[:, :half], right[:, half:]
        zero = torch.zeros_like(first)
        known = {
            "both halves in the other order": (second, first),
            "the mean over the video twice": (first, first),
            "the mean of each frame twice": (second, second),
            "no mean over the video": (zero, second),
            "no mean of each frame": (first, zero),
        }
        for name, parts in known.items():
            if self.network.spec.se_type == "2plus3d" and _near(own, torch.cat(parts, dim=1)):
                return Change("se-pooling", f"it gets {name}", mend)
        return Change("se-pooling", "it gets something else than what is pooled", mend)

    def _input(self, tap: str, number: int) -> Tensor | None:
        node = self.nodes.get(tap)
        if node is None or node.operation in ("input", "product", "sum"):
            return None
        values = [self.value(source, number) for source in node.sources]
        if len(values) > 1:
            frames = max(value.shape[2] for value in values)
            values = [value.expand(-1, -1, frames, -1, -1) for value in values]
        x = torch.cat(values, dim=1)
        before = [self.state_before(name, number) for name in self._buffers(tap)]
        x = torch.cat([*before, x], dim=2)
        return x.flatten(1) if node.operation == "logits" else x

    def _states(self, tap: str) -> tuple[str, ...]:
        """Return the states that a tap reads, if the reference has them."""
        node, known = self.nodes.get(tap), self.comparison.expected[0].states
        return node.states if node is not None and known.keys() >= set(node.states) else ()

    def _buffers(self, tap: str) -> tuple[str, ...]:
        """Return the states whose frames are put in front of a convolution's input."""
        states = self._states(tap)
        return states if states and self.nodes[tap].operation == "conv" else ()

    def _arguments(self, tap: str) -> list[tuple[int, str]]:
        """Return (position, state) of a module's further arguments."""
        return [] if self._buffers(tap) else list(enumerate(self._states(tap), 1))


def _near(own: Tensor, right: Tensor) -> bool:
    if own.shape != right.shape:
        return False
    return bool((own - right).abs().max() <= _SAME * right.abs().max())


def _rounded_to(own: Tensor, right: Tensor) -> str | None:
    """Return the narrower type whose values one tensor has, and the other's to its precision."""
    if own.shape != right.shape:
        return None
    for dtype, share in ((torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)):
        narrow = torch.equal(own, own.to(dtype).double())
        if narrow and bool(((own - right).abs() <= share * right.abs() + 1e-7).all()):
            return str(dtype).removeprefix("torch.")
    return None


def _channel_order(own: Tensor, right: Tensor) -> bool:
    """Whether every channel of one is a channel of the other."""
    a, b = (v.transpose(0, 1).flatten(1) for v in (own, right))
    far = torch.cdist(a, b).amin(dim=1)
    return bool(far.max() <= 1e-5 * b.norm(dim=1).max())
