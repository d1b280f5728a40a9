"""How a MoViNet is wired: each named activation, what it is computed from, which state it uses.

An activation is named by the path of the module that computes it
(``block1_layer0.expansion.norm``), so that it has one name everywhere. Besides modules there is
`INPUT`, the clip that the network is given. Dropout and stochastic depth, which hand on their input
in evaluation, compute none.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

from movinet_port.spec import LayerSpec, ModelSpec
from movinet_port.streams import FRAME_COUNT, POOL_BUFFER, STREAM_BUFFER

INPUT = "input"

Operation: TypeAlias = Literal[
    "input",
    "conv",
    "norm",
    "activation",
    "window mean",  # over 3 x 3 cells of each frame
    "frame mean",
    "clip mean",  # or over the video so far
    "encoding",
    "product",
    "scale",
    "sum",
    "logits",
]

# What an optimised network folds into other operations, so that it has no activation of its own.
FOLDED: frozenset[Operation] = frozenset(("conv", "norm", "scale", "product"))
MEANS: frozenset[Operation] = frozenset(("frame mean", "clip mean"))


@dataclasses.dataclass(frozen=True)
class Node:
    """How one activation is computed.

    Attributes:
        operation: what is done.
        sources: the activations that it is computed from, in the order in which they are taken:
            several are concatenated by channels, multiplied or added.
        states: what it reads of the clips before: a convolution the frames in front of its source,
            a mean over the clip the sum and the number of the frames, an encoding their number.
            Buffers are written where they are read; the network itself counts the frames.
    """

    operation: Operation
    sources: tuple[str, ...] = ()
    states: tuple[str, ...] = ()


def wiring(spec: ModelSpec) -> dict[str, Node]:
    """Return every activation of a network, in the order of computation."""
    return _Wiring(spec).nodes


class _Wiring:
    """Collects the nodes; each method adds some and returns the name of the last."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.nodes: dict[str, Node] = {}
        x = self._stream_block("stem", "stem", self._add(INPUT, "input"), spec.stem.kernel_size[0])
        for layer in spec.layers():
            x = self._bottleneck(layer, x)
        x = self._block("head", x)
        x = self._add("pool", "clip mean", x, states=self._pool_states("head"))
        for part, is_last in (("hidden", False), ("output", True)):
            x = self._block(f"classifier.{part}", x, norm=False, activation=not is_last)
        self._add("classifier", "logits", x)

    def _add(
        self, name: str, operation: Operation, *sources: str, states: tuple[str, ...] = ()
    ) -> str:
        self.nodes[name] = Node(operation, sources, states if self.spec.causal else ())
        return name

    def _block(
        self,
        name: str,
        x: str,
        prefix: str = "",
        *,
        norm: bool = True,
        activation: bool = True,
        states: tuple[str, ...] = (),
    ) -> str:
        x = self._add(f"{name}.{prefix}conv", "conv", x, states=states)
        if norm:
            x = self._add(f"{name}.{prefix}norm", "norm", x)
        return self._add(f"{name}.{prefix}activation", "activation", x) if activation else x

    def _stream_block(self, name: str, owner: str, x: str, frames: int) -> str:
        states = (f"{owner}.{STREAM_BUFFER}",) if frames > 1 else ()
        if not (self.spec.splits_time and frames > 1):
            return self._block(name, x, states=states)
        return self._block(name, self._block(name, x), "temporal_", states=states)

    def _bottleneck(self, layer: LayerSpec, x: str) -> str:
        name, residual = layer.name, x
        if layer.downsamples:
            residual = self._add(f"{name}.skip.pool", "window mean", residual)
        if layer.has_skip_projection:
            residual = self._block(f"{name}.skip", residual, activation=False)
        x = self._block(f"{name}.expansion", x)
        x = self._stream_block(f"{name}.depthwise", name, x, layer.kernel_size[0])
        if self.spec.se_type != "none":
            x = self._squeeze_excitation(f"{name}.squeeze_excitation", name, x)
        x = self._block(f"{name}.projection", x, activation=False)
        x = self._add(f"{name}.rezero", "scale", x)
        return self._add(name, "sum", x, residual)

    def _squeeze_excitation(self, name: str, owner: str, x: str) -> str:
        pooled: tuple[str, ...] = ()
        if self.spec.se_type in ("2d", "2plus3d"):
            pooled = (self._add(f"{name}.spatial_pool", "frame mean", x),)
        if self.spec.se_type in ("3d", "2plus3d"):
            states = self._pool_states(owner)
            source = pooled[0] if pooled else x
            pooled = (
                self._add(f"{name}.temporal_pool", "clip mean", source, states=states),
                *pooled,
            )
        if self.spec.positional_encoding:
            encoded = f"{name}.positional_encoding"
            pooled = (self._add(encoded, "encoding", *pooled, states=(FRAME_COUNT,)),)
        for part in ("reduce", "expand"):
            conv = self._add(f"{name}.{part}.conv", "conv", *pooled)
            pooled = (self._add(f"{name}.{part}.activation", "activation", conv),)
        return self._add(name, "product", *pooled, x)

    def _pool_states(self, owner: str) -> tuple[str, ...]:
        return (f"{owner}.{POOL_BUFFER}", FRAME_COUNT)
