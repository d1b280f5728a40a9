"""What flows into each layer of a MoViNet, computed from the reference's activations and states."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from movinet_port.layers import Bottleneck, Classifier, SqueezeExcitation
from movinet_port.model import MoViNet
from movinet_port.streams import FRAME_COUNT, POOL_BUFFER, STREAM_BUFFER
from parity.comparison import Comparison
from parity.taps import INPUT

# Largest share by which an argument may differ: only copies and sums of float32 lie between.
_SAME = 1e-6

# Tap inside its block -> the tap that it is computed from; the first that exists.
_WITHIN: dict[str, tuple[str, ...]] = {
    "norm": ("conv",),
    "activation": ("norm", "conv"),
    "temporal_conv": ("activation",),
    "temporal_norm": ("temporal_conv",),
    "temporal_activation": ("temporal_norm",),
}

# Tap inside its layer -> likewise, from outside its block. "<" is the layer's input.
_BETWEEN: dict[str, tuple[str, ...]] = {
    "expansion.conv": ("<",),
    "depthwise.conv": ("expansion.activation",),
    "squeeze_excitation.spatial_pool": ("depthwise.temporal_activation", "depthwise.activation"),
    "squeeze_excitation.expand.conv": ("squeeze_excitation.reduce.activation",),
    "projection.conv": (
        "squeeze_excitation",
        "depthwise.temporal_activation",
        "depthwise.activation",
    ),
    "rezero": ("projection.norm",),
    "skip.pool": ("<",),
    "skip.conv": ("skip.pool", "<"),
}

_UNIQUE: dict[str, str] = {
    "stem.conv": INPUT,
    "pool": "head.activation",
    "classifier.hidden.conv": "pool",
    "classifier.output.conv": "classifier.hidden.activation",
    "classifier": "classifier.output.conv",
}


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
        self.layers = network.layer_names

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
        name = self._pool_state(tap)
        seen = self.frames_before()
        if name is None or name not in self.comparison.expected[0].states:
            return [(torch.zeros(1, dtype=torch.float64), 0) for _ in seen]
        return [(self.state_before(name, number), count) for number, count in enumerate(seen)]

    def residual_parts(self, layer: str) -> dict[str, list[Tensor]]:
        """Return what a layer's residual sum could be made of."""
        numbers = range(len(self.comparison.chunks))
        before = self._before(layer)
        parts = {"the branch": [self.value(f"{layer}.rezero", n) for n in numbers]}
        skip = f"{layer}.skip.norm"
        projected = skip in self.comparison.order
        parts["the skip"] = [self.value(skip if projected else before, n) for n in numbers]
        if projected:
            parts["the layer's input"] = [self.value(before, n) for n in numbers]
        return parts

    def gate_parts(self, tap: str) -> tuple[list[Tensor], list[Tensor]]:
        """Return the gates and what they gate."""
        numbers = range(len(self.comparison.chunks))
        layer = tap.rpartition(".")[0]
        gated = self._first(layer, ("depthwise.temporal_activation", "depthwise.activation"))
        return (
            [self.value(f"{tap}.expand.activation", n) for n in numbers],
            [self.value(gated, n) for n in numbers],
        )

    def wrong_arguments(self, tap: str, args: Sequence[tuple[Any, ...]]) -> list[Change]:
        """Return how what a module was given differs from what the reference's layer gets."""
        module = self.network.get_submodule(tap)
        if isinstance(module, (Bottleneck, SqueezeExcitation, Classifier)):
            return []
        changes: dict[Change, None] = {}
        for number, given in enumerate(args):
            right = self._input(tap, number)
            if right is None or not given or not isinstance(given[0], Tensor):
                continue
            if not _near(given[0].double(), right):
                change = self._explain_input(tap, number, given[0].double(), right)
                changes[change] = None
            for position, name in self._states_of(tap):
                if position >= len(given) or not isinstance(given[position], Tensor):
                    continue
                expected = self.state_before(name, number)
                if not _near(given[position].double(), expected):
                    changes[self._explain_argument(name, number, given[position].double())] = None
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
        outputs = []
        reference = next(module.parameters(), None)
        dtype = torch.float32 if reference is None else reference.dtype
        with torch.no_grad():
            for number in range(len(self.comparison.chunks)):
                x = self._input(tap, number)
                if x is None:
                    return None
                arguments = [x.to(dtype)]
                for position, name in self._states_of(tap):
                    state = self.state_before(name, number)
                    while len(arguments) < position:
                        arguments.append(torch.empty(0))
                    arguments.append(state.to(torch.int64 if name == FRAME_COUNT else dtype))
                if len(arguments) == 1 and tap.endswith(("pool", "positional_encoding")):
                    count = torch.zeros(x.shape[0], dtype=torch.int64)
                    if tap.endswith(("temporal_pool", "pool")) and "spatial" not in tap:
                        return None
                    arguments += [count] if tap.endswith("positional_encoding") else []
                out = module(*arguments)
                outputs.append((out[0] if isinstance(out, tuple) else out).double())
        return outputs

    def explain_state(self, name: str, number: int, own: Tensor) -> Change:
        """Say how a state after a chunk differs from the reference's."""
        return self._explain(name, number + 1, own)

    def owner(self, state: str) -> str:
        """Return the layer that a state belongs to."""
        owner = state.rpartition(".")[0]
        return owner if owner in self.layers else ("pool" if owner == "head" else owner or state)

    def _explain_argument(self, name: str, number: int, own: Tensor) -> Change:
        return self._explain(name, number, own)

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
        conv = self._stream_conv(name.rpartition(".")[0])
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

    def _stream_conv(self, owner: str) -> str:
        block = owner if owner == "stem" else f"{owner}.depthwise"
        temporal = f"{block}.temporal_conv"
        return temporal if temporal in self.comparison.order else f"{block}.conv"

    def _explain_input(self, tap: str, number: int, own: Tensor, right: Tensor) -> Change:
        name = self._buffer_state(tap)
        if name is not None and own.shape == right.shape:
            size = self.state_before(name, number).shape[2]
            if _near(own[:, :, size:], right[:, :, size:]):
                return self._explain_argument(name, number, own[:, :, :size])
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
        source = self._source(tap)
        if source is None:
            x = self._concatenated(tap, number)
            if x is None:
                return None
        else:
            x = self.value(source, number)
        name = self._buffer_state(tap)
        if name is not None:
            x = torch.cat([self.state_before(name, number), x], dim=2)
        if tap == "classifier":
            x = x.flatten(1)
        return x

    def _concatenated(self, tap: str, number: int) -> Tensor | None:
        """Return what the squeeze-excitation pooled, for the taps that come next."""
        owner, _, _ = tap.partition(".squeeze_excitation")
        se = f"{owner}.squeeze_excitation"
        if tap == f"{se}.temporal_pool":
            source = self._first(
                owner,
                (
                    "squeeze_excitation.spatial_pool",
                    "depthwise.temporal_activation",
                    "depthwise.activation",
                ),
            )
            return self.value(source, number)
        if tap == f"{se}.reduce.conv" and f"{se}.positional_encoding" in self.comparison.order:
            return self.value(f"{se}.positional_encoding", number)
        if tap not in (f"{se}.reduce.conv", f"{se}.positional_encoding"):
            return None
        pools = [f"{se}.{kind}_pool" for kind in ("temporal", "spatial")]
        values = [self.value(pool, number) for pool in pools if pool in self.comparison.order]
        frames = max(value.shape[2] for value in values)
        values = [value.expand(-1, -1, frames, -1, -1) for value in values]
        return torch.cat(values, dim=1)

    def _source(self, tap: str) -> str | None:
        """Return the one tap that a tap is computed from."""
        if tap in _UNIQUE:
            return _UNIQUE[tap]
        if tap == "head.conv":
            return self.layers[-1]
        block, _, leaf = tap.rpartition(".")
        if leaf in _WITHIN:
            return self._first(block, _WITHIN[leaf])
        layer, _, rest = tap.partition(".")
        if rest in _BETWEEN:
            return self._first(layer, _BETWEEN[rest])
        return None

    def _first(self, owner: str, candidates: Sequence[str]) -> str:
        for candidate in candidates:
            name = self._before(owner) if candidate == "<" else f"{owner}.{candidate}"
            if name in self.comparison.order:
                return name
        raise KeyError(owner)

    def _before(self, layer: str) -> str:
        index = self.layers.index(layer)
        return self.layers[index - 1] if index else "stem.activation"

    def _buffer_state(self, tap: str) -> str | None:
        """Return the state whose frames are put in front of a convolution's input."""
        owner, _, leaf = tap.rpartition(".")
        if leaf not in ("conv", "temporal_conv"):
            return None
        owner = owner.removesuffix(".depthwise")
        name = f"{owner}.{STREAM_BUFFER}"
        if name not in self.comparison.expected[0].states or self._stream_conv(owner) != tap:
            return None
        return name

    def _pool_state(self, tap: str) -> str | None:
        if tap == "pool":
            return f"head.{POOL_BUFFER}"
        if tap.endswith(".temporal_pool"):
            return f"{tap.partition('.')[0]}.{POOL_BUFFER}"
        return None

    def _states_of(self, tap: str) -> list[tuple[int, str]]:
        """Return (position, state) of a module's further arguments."""
        states = self.comparison.expected[0].states
        if FRAME_COUNT not in states:
            return []
        if tap.endswith(".positional_encoding"):
            return [(1, FRAME_COUNT)]
        name = self._pool_state(tap)
        return [(1, name), (2, FRAME_COUNT)] if name in states and name is not None else []


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
