"""The optimised network as a function of tensors alone, which a compiler can take.

A stream's state goes in frame by frame (`StateLayout`) and only what is new comes out, so that a
compiled frame copies no state: the caller moves the references on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from movinet_port.errors import StateError
from movinet_port.fast.layers import Pointwise
from movinet_port.fast.network import FastMoViNet, InferenceNetwork
from movinet_port.fast.state import StateLayout, StreamState
from movinet_port.spec import ModelSpec
from movinet_port.streams import check_video, init_state

# What Inductor's matrix products compute at a time.
_COLUMNS = 16

# (video, *StreamState.flat()) -> (logits, *new frames, *pools, count)
GraphFunction: TypeAlias = Callable[..., Sequence[Tensor]]


def layout_of(spec: ModelSpec) -> StateLayout | None:
    """Return the order of a network's state in its graph; None for a base network."""
    if not spec.causal:
        return None
    # No data: any size will do.
    meta = init_state(spec, 1, 32, 32, torch.float32, torch.device("meta"))
    return StateLayout.of(StreamState.of(meta))


class Graph(nn.Module):
    """The optimised network as a function of tensors; see `GraphFunction`.

    Args:
        network: the optimised network.
        package: computes what it takes, in a package.
    """

    def __init__(self, network: FastMoViNet, package: Any = None) -> None:
        super().__init__()
        self.package = package
        self.network = widened(network)
        self.layout = layout_of(network.spec)

    def forward(self, video: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Return logits, the newest frames, the pools and the count."""
        before = None if self.layout is None else self.layout.unflatten(state)
        logits, after = self.network.compute(video, before, package=self.package)
        if after is None:
            return (logits,)
        new = [
            frame
            for frames in after.frames.values()
            for frame in frames[-min(video.shape[2], len(frames)) :]
        ]
        return (logits, *new, *after.pools.values(), after.count)


def widened(network: FastMoViNet) -> FastMoViNet:
    """Return a copy whose layers hand on zeros after their channels, to a multiple of 16.

    A compiler's matrix products have that many columns at least; of others they waste up to half.
    What is expanded, and so the state, stays as it is.
    """
    network = copy.deepcopy(network)
    channels = network.spec.stem.filters
    for layer in network.bottlenecks:
        out = channels
        if layer.skip is not None:
            out = -(-layer.project.weight.shape[0] // _COLUMNS) * _COLUMNS
            _pad(layer.skip, out, channels)
        _pad(layer.expansion, None, channels)
        _pad(layer.project, out, None)
        channels = out
    _pad(network.head, None, channels)
    network.prepare()
    return network


def _pad(block: Pointwise, rows: int | None, columns: int | None) -> None:
    """Give a 1 x 1 convolution zeros to more output channels, or for more input channels."""
    weight = block.weight
    more_rows = 0 if rows is None else rows - weight.shape[0]
    more_columns = 0 if columns is None else columns - weight.shape[1]
    block.store(weight=F.pad(weight, (0, more_columns, 0, more_rows)))
    block.prepare()


class GraphNetwork(InferenceNetwork):
    """A network that is computed by a compiled `Graph`.

    Args:
        spec, labels: of the network.
        function: the compiled graph.
        dtype: of the frames that it takes.
        shape: the one (batch, frames, height, width) that it takes; None for any.
        strided: whether clips may lie in memory in any way; otherwise they are made contiguous.
    """

    def __init__(
        self,
        spec: ModelSpec,
        labels: tuple[str, ...] | None,
        function: GraphFunction,
        dtype: torch.dtype,
        shape: tuple[int, int, int, int] | None = None,
        strided: bool = False,
    ) -> None:
        super().__init__(spec, labels)
        self.shape = shape
        self._strided = strided
        self._function = function
        self._dtype = dtype
        self._layout = layout_of(spec)
        # How a state moves on over a clip of so many frames: looked up, because looking at every
        # layer takes as long as a layer does.
        self._advance: dict[int, Callable[[Sequence[Tensor]], tuple[Tensor, ...]]] = {}
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        """The type it computes in."""
        return self._dtype

    def check(self, video: Tensor) -> tuple[int, int, int]:
        """Return (batch, height, width) of a clip that this network can take.

        Raises:
            StateError: it has not the shape that the network was compiled for.
        """
        batch, height, width = check_video(video)
        found = (batch, video.shape[2], height, width)
        if self.shape is not None and found != self.shape:
            raise StateError(
                f"the clip is (batch, frames, height, width) = {found}, but this network was "
                f"compiled for {self.shape}; compile it again for that shape, or use the eager "
                f"level, which takes any"
            )
        return batch, height, width

    def run(self, video: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState | None]:
        """Return logits and the state after the clip; see `InferenceNetwork.run`."""
        video = video.to(self._dtype)
        if not self._strided:
            video = video.contiguous()
        with torch.no_grad():
            if state is None:
                return self._function(video)[0], None
            before = state.flat()
            logits, *new = self._function(video, *before)
        assert self._layout is not None
        frames = video.shape[2]
        advance = self._advance.get(frames)
        if advance is None:
            advance = self._advance[frames] = self._layout.advance(frames)
        return logits, self._layout.lazily(advance([*before, *new]))


def compile_graph(network: FastMoViNet) -> GraphNetwork:
    """Return the network compiled by `torch.compile`, once more for every shape that it meets."""
    graph = Graph(network)
    # Nothing else can change the tensors of an exported program, and checking before every
    # call that they are the same takes longer than the call.
    guards = torch.compiler.skip_guard_on_all_nn_modules_unsafe
    options = {**OPTIONS, "guard_filter_fn": guards}
    compiled: dict[tuple[int, ...], GraphFunction] = {}

    def function(video: Tensor, *state: Tensor) -> Sequence[Tensor]:
        shape = tuple(video.shape)
        if shape not in compiled:
            program = torch.export.export(graph, (video, *state), strict=False).module()
            compiled[shape] = torch.compile(
                program, dynamic=False, fullgraph=True, options=dict(options)
            )
        return compiled[shape](video, *state)

    return GraphNetwork(network.spec, network.labels, function, network.dtype)


OPTIONS: dict[str, Any] = {
    # An activation is written once and read by nine or more terms of a depthwise convolution, not
    # computed again for each.
    "realize_reads_threshold": 0,
    "cpp.enable_floating_point_contract_flag": "fast",
    # Elements for one thread: a loop of fewer is over before another thread has heard of it.
    "cpp.min_chunk_size": 4096,
}

# Weights laid out ahead for Inductor's own matrix products, with bias and activation in them:
# PyTorch's single ones cost more to call than to compute. oneDNN lays out nothing of double
# precision.
PRODUCTS = {
    "freezing": True,
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP",
}
