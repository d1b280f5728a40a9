"""The graph of a SavedModel as a reference."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from converters.containers.checkpoint import read_saved_model
from converters.convert import fill
from converters.dialects import state_owner
from converters.graph import load_graph
from converters.graph_evidence import GraphEvidence
from converters.locate import locate_variables
from converters.recognise import recognise
from movinet_port.model import MoViNet
from movinet_port.spec import ModelSpec
from movinet_port.streams import FRAME_COUNT
from parity.chunk_values import Array, ChunkValues
from parity.errors import ComparisonError
from parity.graph_taps import GraphTaps
from parity.references.reference import channels_first, channels_last
from parity.references.tensorflow_graph import TensorFlowGraph

# Of a SavedModel's graph, run in pieces of so many layers.
LAYERS_AT_ONCE = 4

_TEMPORAL = ("temporal_conv", "temporal_norm", "temporal_activation")


class SavedModelReference:
    """The graph of a MoViNet's SavedModel.

    The serving signature is laid out flat, so that every intermediate result has a name, and run
    operation by operation; depthwise 3-D convolutions, which TensorFlow has only in XLA, are
    compiled by it one by one.

    Attributes:
        spec: of the network, as `converters` reads it.
        taps: tap -> node of the graph.

    Raises:
        ConversionError: the SavedModel is damaged or no MoViNet.
        ComparisonError: a tap is not in the graph.
    """

    table: Mapping[str, str] | None = None

    def __init__(self, folder: str | os.PathLike[str], name: str | None = None) -> None:
        folder = Path(folder)
        located = locate_variables(read_saved_model(folder))
        graph = load_graph(folder)
        variables = {p: graph.variables[v.node] for p, v in located.parameters.items()}
        self.spec: ModelSpec = recognise(located, GraphEvidence(graph, variables), {}).spec
        self.parameters: Mapping[str, Tensor] = fill(self.spec, located)
        finder = GraphTaps(graph, variables, self.spec)
        self.taps = finder.find()
        self._states = finder.states()
        values = {variables[p][0]: v.read() for p, v in located.parameters.items()}
        self._executor = TensorFlowGraph(graph, values, set(self._states))
        self.description: Mapping[str, Any] = {
            "kind": "savedmodel",
            "name": name or str(folder),
            "network": f"{self.spec.name} {self.spec.mode}",
            "taps": len(self.taps),
        }

    def run(self, chunks: Sequence[Array]) -> list[ChunkValues]:
        """Return the activations for a video.

        Args:
            chunks: each (batch, 3, frames, height, width), RGB in [0, 1].

        Raises:
            ComparisonError: TensorFlow cannot run the graph on it.
        """
        states = self._initial(chunks[0])
        by_chunk = []
        for chunk in chunks:
            feeds = {"image": channels_last(chunk), **states}
            activations: dict[str, Array] = {}
            found: dict[str, Array] = {}
            cut: dict[str, Array] = {}
            for taps, nodes in self._pieces():
                values = self._executor.run(feeds, nodes, cut)
                found |= {node: values[node] for node in nodes[len(taps) :]}
                for tap in taps:
                    value = values[self.taps[tap]]
                    block, _, leaf = tap.rpartition(".")
                    if value.ndim == 4 and leaf in _TEMPORAL:
                        # (batch, frames, height * width, channels): a 2-D convolution over time.
                        size = activations[f"{block}.conv"].shape[3:]
                        value = value.reshape(*value.shape[:2], *size, value.shape[3])
                    activations[tap] = channels_first(value, chunk.shape[0])
                cut = {self.taps[taps[-1]]: values[self.taps[taps[-1]]]}
            after: dict[str, Array] = {}
            for argument, (name, node) in self._states.items():
                states[argument] = found[node]
                value = channels_first(found[node], chunk.shape[0])
                # Every frame count of TensorFlow is one state here, and must be one number.
                if name in after and not np.array_equal(after[name], value):
                    raise ComparisonError(f"the reference's frame counts differ: {argument}")
                after[name] = value
            by_chunk.append(ChunkValues(activations, after))
        return by_chunk

    def _pieces(self) -> Iterator[tuple[list[str], list[str]]]:
        """Yield (taps, nodes to fetch) of a few layers after the other.

        TensorFlow keeps the memory of all that it ever returned at once: for every tap of a large
        network that would be as much again as the activations themselves.
        """
        ends = [layer.name for layer in self.spec.layers()][LAYERS_AT_ONCE - 1 :: LAYERS_AT_ONCE]
        taps: list[str] = []
        for tap in self.taps:
            taps.append(tap)
            if tap in ends or tap == next(reversed(self.taps)):
                owners = {name.partition(".")[0] for name in taps}
                kept = [n for key, (_, n) in self._states.items() if state_owner(key) in owners]
                yield taps, [*(self.taps[name] for name in taps), *kept]
                taps = []

    def _initial(self, chunk: Array) -> dict[str, Array]:
        """Return the states before a video: zeros, under the signature's names."""
        if not self.spec.causal:
            return {}
        with torch.device("meta"):
            shapes = MoViNet(self.spec).state_shapes(*chunk.shape[3:])
        states: dict[str, Array] = {}
        for argument, (name, _) in self._states.items():
            if name == FRAME_COUNT:
                states[argument] = np.zeros((1,), np.int32)
            else:
                channels, *rest = shapes[name]
                states[argument] = np.zeros((chunk.shape[0], *rest, channels), np.float32)
        return states
