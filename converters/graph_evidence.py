"""What a SavedModel's graph says about the network that its weights do not.

Strides, padding, batch normalisation's epsilon, activations, the gate's flavour, causality and
what the squeeze-excitation pools: each is read off the operations around the variable concerned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from converters.containers.evidence import ConvolutionEvidence, Statement
from converters.containers.variables import Variable
from converters.errors import ConversionError
from converters.graph import ELEMENTWISE, Evaluator, load_graph
from converters.interpreter.graph import PASS_THROUGH, Graph, Node, Value
from movinet_port import functions
from movinet_port.checkpoint import listing
from movinet_port.layers import legacy_padding, same_padding
from movinet_port.spec import Triple

_CONVOLUTIONS = frozenset({"Conv3D", "Conv2D", "DepthwiseConv2dNative"})

Function = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _in_numpy(function: functions.Function) -> Function:
    module = function.module()
    return lambda x: module(torch.from_numpy(x)).numpy()


# Every activation and gate that a MoViNet is known to have, under its name in a `ModelSpec`.
ACTIVATIONS = {name: _in_numpy(function) for name, function in functions.ACTIVATIONS.items()}
GATES = {name: _in_numpy(function) for name, function in functions.GATES.items()}
LINEAR = "linear"

_GRID = np.linspace(-8.0, 8.0, 321)
# Far above float32 rounding of the constants, far below what tells two flavours apart
# (0.033 between the hard sigmoids, 2e-5 between a factor of 0.16667 and one of 1/6).
_GRID_TOLERANCE = 1e-5


def _shortest(value: float) -> float:
    """Return the shortest decimal that is `value` in float32: 0.001, not 0.0010000000474974513."""
    return float(str(np.float32(value)))


class GraphEvidence:
    """Answers questions about the operations around a parameter of the network.

    Args:
        graph: the flat graph.
        variables: canonical parameter name -> value of the variable's resource in the graph.
    """

    def __init__(self, graph: Graph, variables: Mapping[str, Value]) -> None:
        self._graph = graph
        self._evaluate = Evaluator(graph)
        self._variables = variables

    def convolution(self, parameter: str, kernel_size: Triple) -> ConvolutionEvidence:
        """Return how the convolution with this weight strides and pads."""
        node = self._convolution_node(parameter)
        strides = list(node.attr["strides"].list.i)[1:-1]
        if len(strides) == 2:
            strides = [1, *strides]
        data = self._graph.source(node.inputs[0])
        explicit = data if node.attr["padding"].s != b"SAME" and data.op == "Pad" else None
        paddings = self._padding_rules(explicit, kernel_size, strides)
        if explicit is not None:
            data = self._graph.source(explicit.inputs[0])
        # A stream buffer is put in front of the clip.
        causal = data.op == "ConcatV2"
        return ConvolutionEvidence(
            node.name, (strides[0], strides[1], strides[2]), causal, paddings
        )

    def activation(self, parameter: str) -> Statement:
        """Return the activation behind the bias or batch normalisation offset `parameter`."""
        return self._function(parameter, {**ACTIVATIONS, LINEAR: lambda x: x})

    def gate(self, parameter: str) -> Statement:
        """Return the gate behind the bias `parameter`."""
        return self._function(parameter, GATES)

    def epsilon(self, parameter: str) -> float:
        """Return what the batch normalisation adds to the variance `parameter`."""
        for node, position in self._uses(parameter):
            if node.op == "FusedBatchNormV3":
                # What is TensorFlow's default is not saved.
                return _shortest(node.attr["epsilon"].f) if "epsilon" in node.attr else 1e-4
            if node.op == "AddV2":
                return _shortest(self._evaluate(node.inputs[1 - position], {}).item())
        raise ConversionError(
            f"{parameter}: no batch normalisation in the graph uses it, expected one"
        )

    def pooled_over_time(self, parameter: str) -> Statement:
        """Return whether what reaches the convolution `parameter` was pooled over frames.

        The value is "time" or "space".
        """
        pools = [
            node
            for node in self._upstream(self._convolution_node(parameter))
            if node.op in ("Sum", "Cumsum", "Mean")
        ]
        for node in pools:
            if node.op != "Mean" or 1 in self._evaluate(node.inputs[1], {}):
                return Statement("time", node.name)
        if not pools:
            raise ConversionError(f"{parameter}: nothing is pooled in front of it")
        return Statement("space", pools[0].name)

    def average_pool(self, parameter: str) -> str | None:
        """Check the pool in front of the convolution `parameter`; return its node, if there is one.

        Raises:
            ConversionError: it is another pool than 3 x 3, stride 2, SAME.
        """
        node = self._graph.source(self._convolution_node(parameter).inputs[0])
        if node.op not in ("AvgPool", "AvgPool3D"):
            return None
        window = list(node.attr["ksize"].list.i)[-3:-1]
        strides = list(node.attr["strides"].list.i)[-3:-1]
        padding = node.attr["padding"].s
        if (window, strides, padding) != ([3, 3], [2, 2], b"SAME"):
            raise ConversionError(
                f"{node.name}: average pool {window} with strides {strides} and padding "
                f"{padding.decode()}, expected [3, 3], [2, 2], SAME as in a MoViNet"
            )
        return node.name

    def _uses(self, parameter: str) -> Iterator[tuple[Node, int]]:
        return self._graph.users(self._variables[parameter][0])

    def _convolution_node(self, parameter: str) -> Node:
        nodes = [n for n, i in self._uses(parameter) if n.op in _CONVOLUTIONS and i == 1]
        if len(nodes) != 1:
            raise ConversionError(
                f"{parameter}: {len(nodes)} convolutions of the graph use it, expected 1"
            )
        return nodes[0]

    def _padding_rules(
        self, pad: Node | None, kernel_size: Triple, strides: list[int]
    ) -> frozenset[str]:
        """Return the rules that give what `pad` does, or SAME if there is no such node."""
        size = 8  # Any even size: there the rules differ for strided convolutions.
        kernel = kernel_size[1:]
        rules = {
            "same": [same_padding(size, k, s) for k, s in zip(kernel, strides[1:], strict=True)],
            "legacy": [legacy_padding(k) for k in kernel],
        }
        spatial = rules["same"]
        if pad is not None and kernel != (1, 1):
            clip = np.zeros((1, size, size, size, 1))
            source = self._graph.source(pad.inputs[0])
            known = dict.fromkeys(self._aliases_of(pad.inputs[0], source), clip)
            amounts = np.asarray(self._evaluate(pad.inputs[1], known))
            # Height and width, whether frames are an axis of their own or not.
            spatial = [tuple(row) for row in amounts[-3:-1].tolist()]
        fitting = frozenset(name for name, expected in rules.items() if spatial == expected)
        if pad is not None and not fitting:
            raise ConversionError(
                f"{pad.name}: pads {spatial} cells for a kernel of {kernel}, expected "
                f"{rules['same']} (SAME) or {rules['legacy']} (legacy)"
            )
        return fitting

    def _aliases_of(self, value: Value, source: Node) -> list[str]:
        """Return the nodes on the way from `source` to `value`: all have the same value."""
        names, name = [source.name], value[0]
        while name != source.name:
            names.append(name)
            name = self._graph.nodes[name].inputs[0][0]
        return names

    def _function(self, parameter: str, candidates: Mapping[str, Function]) -> Statement:
        start = self._affine_output(parameter)
        last = self._end_of_elementwise(start)
        found = self._evaluate((last, 0), {start: _GRID})
        for name, function in candidates.items():
            if np.allclose(found, function(_GRID), rtol=0, atol=_GRID_TOLERANCE):
                return Statement(name, last)
        points = [160 + 20 * x for x in (-2, 1, 4)]  # _GRID has 20 steps a unit, 0 in the middle
        shown = ", ".join(f"f({_GRID[i]:g}) = {found[i]:.4g}" for i in points)
        raise ConversionError(f"{last}: computes none of {', '.join(candidates)}: {shown}")

    def _affine_output(self, parameter: str) -> str:
        """Return the node whose value is the convolution, normalised or with its bias added."""
        for node, position in self._uses(parameter):
            if node.op in ("FusedBatchNormV3", "BiasAdd"):
                return node.name
            if node.op == "Sub" and position == 0:
                # beta - mean * scale, which is then added to x * scale.
                return next(n.name for n in self._graph.consumers(node.name) if n.op == "AddV2")
        raise ConversionError(f"{parameter}: nothing in the graph adds it to a convolution")

    def _end_of_elementwise(self, start: str) -> str:
        """Return the last node computed from `start` and constants alone, value by value."""
        region, frontier = [start], [start]
        while frontier:
            for node in self._graph.consumers(frontier.pop(0)):
                if node.name in region or node.op not in ELEMENTWISE:
                    continue
                inputs = node.inputs[:1] if node.op == "Reshape" else node.inputs
                if all(self._is_constant(s) or s in region for s, _ in inputs):
                    region.append(node.name)
                    frontier.append(node.name)
        computing = [n for n in region[1:] if self._graph.nodes[n].op not in PASS_THROUGH]
        return computing[-1] if computing else start

    def _is_constant(self, name: str) -> bool:
        node = self._graph.nodes[name]
        return node.op == "Const" or (
            node.op == "Identity" and self._is_constant(node.inputs[0][0])
        )

    def _upstream(self, node: Node) -> Iterator[Node]:
        """Yield the nodes that lead to the data input of `node`, nearest first."""
        seen, queue = {node.name}, [node.inputs[0][0]]
        while queue:
            name = queue.pop(0)
            if name in seen:
                continue
            seen.add(name)
            current = self._graph.nodes[name]
            yield current
            # A pool ends the search, and so does what is no part of the squeeze.
            if current.op in PASS_THROUGH or current.op in ("Pad", "Tile"):
                queue.append(current.inputs[0][0])
            elif current.op in ELEMENTWISE or current.op == "ConcatV2":
                queue += [source for source, _ in current.inputs]


def saved_model_evidence(folder: Path, parameters: Mapping[str, Variable]) -> GraphEvidence:
    """Read the graph of a SavedModel.

    Args:
        folder: the SavedModel.
        parameters: canonical parameter name -> the variable that fills it.

    Raises:
        ConversionError: the graph cannot be read, or does not use one of the variables.
    """
    graph = load_graph(folder)
    absent = [p for p, v in parameters.items() if v.node not in graph.captured]
    if absent:
        raise ConversionError(
            f"the serving signature does not use {len(absent)} of the variables: "
            f"{listing(absent)}; expected all of them"
        )
    return GraphEvidence(graph, {p: graph.captured[v.node] for p, v in parameters.items()})
