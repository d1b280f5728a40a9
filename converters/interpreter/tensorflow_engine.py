"""Running a flat graph in TensorFlow itself, where it is installed: the other engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from converters.errors import ConversionError
from converters.interpreter.graph import UNKNOWN, Graph, Node, Value
from converters.tensorflow import import_tensorflow

Array: TypeAlias = NDArray[Any]

# TensorFlow keeps the memory of all that one run returns at once, so that values are fetched some
# at a time. Those fetched last are given to the next run: a layer's own input is among them, and
# what comes before it need not be computed again.
FETCHED_AT_ONCE = 64
GIVEN_AGAIN = 32


class TensorFlowEngine:
    """Runs one flat graph in float32, operation by operation, nothing fused.

    Depthwise 3-D convolutions, which TensorFlow has on a CPU only in XLA, are compiled by it one by
    one. The methods are those of `converters.interpreter.run.Interpreter`.

    Args:
        graph: of a signature.
        captured: number of a captured object -> its value, see `SavedModel.value`.

    Raises:
        TensorFlowMissingError: TensorFlow is not installed.
        ConversionError: the graph takes an output of an operation that is not known here.
    """

    def __init__(self, graph: Graph, captured: Callable[[int], Array]) -> None:
        self.graph = graph
        self._tf = tf = import_tensorflow()
        self._library: dict[str, Any] = {}
        self._names = {name: f"n{number}" for number, name in enumerate(graph.nodes)}
        self._values = {value[0]: captured(n) for n, value in graph.captured.items()}
        definition = tf.compat.v1.GraphDef()
        for node in graph.nodes.values():
            if node.op != "NoOp":
                self._emit(definition.node.add(), node)
        definition.library.function.extend(self._library.values())
        definition.versions.producer = tf.compat.v1.get_default_graph().graph_def_versions.producer
        self._graph = tf.Graph()
        with self._graph.as_default():
            tf.graph_util.import_graph_def(definition, name="")
        config = tf.compat.v1.ConfigProto()
        # Fused operations would round otherwise than the ones in the file.
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        self._session = tf.compat.v1.Session(graph=self._graph, config=config)

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return the signature's results, given its arguments."""
        found = dict(self.stream(inputs, list(self.graph.outputs.values())))
        return {key: found[value] for key, value in self.graph.outputs.items()}

    def stream(
        self, inputs: Mapping[str, Tensor], fetches: Sequence[Value]
    ) -> Iterator[tuple[Value, Tensor]]:
        """Yield each value of `fetches` once, in the order of the graph.

        Raises:
            ConversionError: TensorFlow cannot run the graph on these inputs.
        """
        given = {self._tensor(self.graph.inputs[key]): x.numpy() for key, x in inputs.items()}
        wanted = set(fetches)
        order = {name: number for number, name in enumerate(self._names)}
        pending = sorted(wanted, key=lambda value: (order[value[0]], value[1]))
        known: dict[str, Array] = {}
        for start in range(0, len(pending), FETCHED_AT_ONCE):
            piece = pending[start : start + FETCHED_AT_ONCE]
            try:
                found = self._session.run([self._tensor(v) for v in piece], {**given, **known})
            except Exception as error:
                lines = str(error).splitlines() or [type(error).__name__]
                raise ConversionError(f"TensorFlow cannot run the graph: {lines[0]}") from error
            last = zip(piece[-GIVEN_AGAIN:], found[-GIVEN_AGAIN:], strict=True)
            known = {self._tensor(value): array for value, array in last}
            while piece:
                yield piece.pop(0), torch.from_numpy(np.array(found.pop(0)))

    def _tensor(self, value: Value) -> str:
        return f"{self._names[value[0]]}:{value[1]}"

    def _emit(self, emitted: Any, node: Node) -> None:
        tf = self._tf
        emitted.name = self._names[node.name]
        emitted.op = node.op
        if node.name in self._values:
            value = tf.make_tensor_proto(self._values[node.name])
            emitted.op = "Const"
            emitted.attr["dtype"].type = value.dtype
            emitted.attr["value"].tensor.CopyFrom(value)
            return
        if node.op == "Placeholder":
            emitted.attr["dtype"].type = node.type
            return
        if any(number == UNKNOWN for _, number in node.inputs):
            source = next(name for name, number in node.inputs if number == UNKNOWN)
            raise ConversionError(
                f"graph node {source}: operation {self.graph.nodes[source].op} is not known"
            )
        emitted.input.extend(self._tensor(value) for value in node.inputs)
        if node.op == "ReadVariableOp":
            emitted.op = "Identity"
            emitted.attr["T"].MergeFromString(node.attr["dtype"].SerializeToString())
            return
        for key, attribute in node.attr.items():
            if not key.startswith("_"):
                emitted.attr[key].MergeFromString(attribute.SerializeToString())
        if node.op == "Conv3D" and self._is_grouped(node):
            self._compile(emitted, node)

    def _is_grouped(self, node: Node) -> bool:
        """Whether a convolution's kernel, (frames, height, width, 1, out), is a depthwise one."""
        kernel = self._values.get(self.graph.source(node.inputs[1]).name)
        return kernel is not None and kernel.shape[3] == 1 and kernel.shape[4] > 1

    def _compile(self, emitted: Any, node: Node) -> None:
        """Make a node call an XLA function that does what the node does."""
        tf = self._tf
        key = str(sorted((k, str(v)) for k, v in emitted.attr.items()))
        if key not in self._library:
            strides = list(node.attr["strides"].list.i)
            padding = node.attr["padding"].s.decode()
            spec = tf.TensorSpec([None] * 5, tf.float32)

            @tf.function(jit_compile=True, input_signature=[spec, spec])
            def convolve(x: Any, kernel: Any) -> Any:
                return tf.raw_ops.Conv3D(input=x, filter=kernel, strides=strides, padding=padding)

            self._library[key] = convolve.get_concrete_function().function_def
        emitted.op = "XlaLaunch"
        for name in list(emitted.attr):
            del emitted.attr[name]
        emitted.attr["function"].func.name = self._library[key].signature.name
        emitted.attr["Nresources"].i = 0
        emitted.attr["Tconstants"].list.SetInParent()
        dtype = tf.float32.as_datatype_enum
        emitted.attr["Targs"].list.type.extend([dtype, dtype])
        emitted.attr["Tresults"].list.type.append(dtype)
