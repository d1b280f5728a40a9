"""Running a flat graph in TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from converters.graph import Graph
from converters.tensorflow import import_tensorflow
from parity.chunk_values import Array
from parity.errors import ComparisonError


class TensorFlowGraph:
    """Runs a flat graph in TensorFlow, any of its values fetched by name."""

    def __init__(self, graph: Graph, values: Mapping[str, Array], integer: set[str]) -> None:
        self._tf = tf = import_tensorflow()
        self._inputs = graph.inputs
        self._compiled: dict[str, str] = {}
        self._library: dict[str, Any] = {}
        self._names = {name: f"n{number}" for number, name in enumerate(graph.nodes)}
        definition = tf.compat.v1.GraphDef()
        counts = {
            graph.inputs[argument][0] for argument in integer if argument.endswith("frame_count")
        }
        variables = {value[0] for value in graph.variables.values()}
        for node in graph.nodes.values():
            if node.op == "NoOp" or (node.name in variables and node.name not in values):
                continue
            emitted = definition.node.add()
            emitted.name = self._names[node.name]
            emitted.op = node.op
            if node.name in values:
                value = tf.make_tensor_proto(values[node.name])
                emitted.op = "Const"
                emitted.attr["dtype"].type = value.dtype
                emitted.attr["value"].tensor.CopyFrom(value)
                continue
            if node.op == "Placeholder":
                dtype = tf.int32 if node.name in counts else tf.float32
                emitted.attr["dtype"].type = dtype.as_datatype_enum
                continue
            emitted.input.extend(f"{self._names[name]}:{number}" for name, number in node.inputs)
            if node.op == "ReadVariableOp":
                emitted.op = "Identity"
                emitted.attr["T"].CopyFrom(node.attr["dtype"])
                continue
            for key, attribute in node.attr.items():
                if not key.startswith("_"):
                    emitted.attr[key].CopyFrom(attribute)
            if node.op == "Conv3D" and _is_grouped(graph.source(node.inputs[1]).name, values):
                self._compile(emitted, node)
        definition.library.function.extend(self._library.values())
        definition.versions.producer = tf.compat.v1.get_default_graph().graph_def_versions.producer
        self._graph = tf.Graph()
        with self._graph.as_default():
            tf.graph_util.import_graph_def(definition, name="")
        config = tf.compat.v1.ConfigProto()
        # Fused operations would round otherwise than the ones in the file.
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        self._session = tf.compat.v1.Session(graph=self._graph, config=config)

    def run(
        self, feeds: Mapping[str, Array], nodes: Sequence[str], known: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return the values of `nodes`, given the signature's arguments.

        Args:
            feeds: argument -> value.
            nodes: to compute.
            known: node -> its value, which is then not computed.
        """
        names = dict.fromkeys(nodes)
        try:
            values = self._session.run(
                [f"{self._names[name]}:0" for name in names],
                {
                    **{f"{self._names[self._inputs[key][0]]}:0": v for key, v in feeds.items()},
                    **{f"{self._names[name]}:0": value for name, value in known.items()},
                },
            )
        except Exception as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise ComparisonError(f"TensorFlow cannot run the graph: {lines[0]}") from error
        return dict(zip(names, values, strict=True))

    def _compile(self, emitted: Any, node: Any) -> None:
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


def _is_grouped(kernel: str, values: Mapping[str, Array]) -> bool:
    """Whether a 3-D kernel, (frames, height, width, in / groups, out), is a depthwise one."""
    return kernel in values and values[kernel].shape[3] == 1 and values[kernel].shape[4] > 1
