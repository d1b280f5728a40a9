"""The graph of a SavedModel as a reference."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from converters.containers import saved_model
from converters.containers.saved_model import read_saved_model
from converters.convert import fill
from converters.graph import classifying_signature
from converters.graph_evidence import GraphEvidence
from converters.interpreter.engines import DEFAULT, make_engine
from converters.interpreter.graph import flatten
from converters.locate import locate_variables
from converters.recognise import recognise
from movinet_port.model import MoViNet
from movinet_port.spec import ModelSpec
from movinet_port.streams import FRAME_COUNT
from parity.chunk_values import Array, ChunkValues
from parity.errors import ComparisonError
from parity.graph_taps import GraphTaps
from parity.references.reference import channels_first, channels_last, tap_value


class SavedModelReference:
    """The graph of a MoViNet's SavedModel.

    The serving signature is laid out flat, so that every intermediate result has a name, and run
    operation by operation, in PyTorch or in TensorFlow.

    Args:
        folder: the SavedModel.
        name: for the report; by default the folder.
        engine: what runs the graph, a key of `converters.interpreter.engines.ENGINES`.

    Attributes:
        spec: of the network, as `converters` reads it.
        taps: tap -> node of the graph.

    Raises:
        ConversionError: the SavedModel is damaged or no MoViNet.
        ComparisonError: a tap is not in the graph.
    """

    table: Mapping[str, str] | None = None

    def __init__(
        self,
        folder: str | os.PathLike[str],
        name: str | None = None,
        engine: str = DEFAULT,
    ) -> None:
        folder = Path(folder)
        located = locate_variables(read_saved_model(folder))
        saved = saved_model.read(folder)
        graph = flatten(saved, classifying_signature(saved))
        variables = {p: graph.captured[v.node] for p, v in located.parameters.items()}
        self.spec: ModelSpec = recognise(located, GraphEvidence(graph, variables), {}).spec
        self.parameters: Mapping[str, Tensor] = fill(self.spec, located)
        finder = GraphTaps(graph, variables, self.spec)
        self.taps = finder.find()
        self._states = finder.states()
        self._engine = make_engine(engine, graph, saved.value)
        self.description: Mapping[str, Any] = {
            "kind": "savedmodel",
            "name": name or str(folder),
            "network": f"{self.spec.name} {self.spec.mode}",
            "taps": len(self.taps),
            "engine": engine,
        }

    def run(self, chunks: Sequence[Array]) -> list[ChunkValues]:
        """Return the activations for a video.

        Args:
            chunks: each (batch, 3, frames, height, width), RGB in [0, 1].

        Raises:
            ConversionError: the engine cannot run the graph on it.
            ComparisonError: the states are not those of one stream.
        """
        states = self._initial(chunks[0])
        taps_of: dict[str, list[str]] = {}
        for tap, node in self.taps.items():
            taps_of.setdefault(node, []).append(tap)
        nodes = dict.fromkeys([*taps_of, *(node for _, node in self._states.values())])
        by_chunk = []
        for chunk in chunks:
            image = torch.from_numpy(channels_last(chunk))
            activations: dict[str, Array] = {}
            kept: dict[str, Tensor] = {}
            results = {node for _, node in self._states.values()}
            fetches = [(node, 0) for node in nodes]
            for (node, _), value in self._engine.stream({"image": image, **states}, fetches):
                for tap in taps_of.get(node, ()):
                    activations[tap] = tap_value(tap, value.numpy(), activations, len(chunk))
                if node in results:
                    kept[node] = value
            after: dict[str, Array] = {}
            for argument, (name, node) in self._states.items():
                states[argument] = kept[node]
                state = channels_first(kept[node].numpy(), len(chunk))
                # Every frame count of TensorFlow is one state here, and must be one number.
                if name in after and not np.array_equal(after[name], state):
                    raise ComparisonError(f"the reference's frame counts differ: {argument}")
                after[name] = state
            by_chunk.append(ChunkValues({tap: activations[tap] for tap in self.taps}, after))
        return by_chunk

    def _initial(self, chunk: Array) -> dict[str, Tensor]:
        """Return the states before a video: zeros, under the signature's names."""
        if not self.spec.causal:
            return {}
        with torch.device("meta"):
            shapes = MoViNet(self.spec).state_shapes(*chunk.shape[3:])
        states: dict[str, Tensor] = {}
        for argument, (name, _) in self._states.items():
            if name == FRAME_COUNT:
                states[argument] = torch.zeros(1, dtype=torch.int32)
            else:
                channels, *rest = shapes[name]
                states[argument] = torch.zeros(chunk.shape[0], *rest, channels)
        return states
