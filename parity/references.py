"""What a PyTorch network is compared with: anything that yields named activations.

Activations and states are numpy arrays in PyTorch's layout, (batch, channels, frames, height,
width), one set for each chunk of the video.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from converters.containers.checkpoint import read_variables
from converters.convert import fill
from converters.dialects import state_owner
from converters.graph import Graph, load_graph
from converters.graph_evidence import GraphEvidence
from converters.locate import locate_variables
from converters.recognise import recognise
from converters.tensorflow import import_tensorflow
from movinet_port.files import whole_file
from movinet_port.model import MoViNet
from movinet_port.spec import ModelSpec
from movinet_port.streams import FRAME_COUNT
from parity.errors import ComparisonError
from parity.taps import INPUT, GraphTaps

Array: TypeAlias = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Moment:
    """What a reference computes for one chunk.

    Attributes:
        activations: tap -> value; `taps.INPUT` is the chunk itself.
        states: stream state -> value after the chunk.
    """

    activations: Mapping[str, Array]
    states: Mapping[str, Array] = dataclasses.field(default_factory=dict)


class Reference(Protocol):
    """A source of named activations.

    Attributes:
        description: plain data: "kind", "name", and whatever else the report should say.
        parameters: the reference's own parameters under the model's names, as far as known.
        table: name of an activation -> path of the module in the PyTorch network; None where the
            reference uses the taps of a MoViNet.
    """

    description: Mapping[str, Any]
    parameters: Mapping[str, Tensor]
    table: Mapping[str, str] | None

    def run(self, chunks: Sequence[Array]) -> Sequence[Moment]:
        """Return the activations for a video given in chunks, from its beginning."""
        ...


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
        located = locate_variables(read_variables(folder / "variables" / "variables"))
        graph = load_graph(folder)
        variables = {p: graph.variables[v.node] for p, v in located.parameters.items()}
        self.spec: ModelSpec = recognise(located, GraphEvidence(graph, variables), {}).spec
        self.parameters: Mapping[str, Tensor] = fill(self.spec, located)
        finder = GraphTaps(graph, variables, self.spec)
        self.taps = finder.find()
        self._states = finder.states()
        values = {variables[p][0]: v.read() for p, v in located.parameters.items()}
        self._executor = _Executor(graph, values, set(self._states))
        self.description: Mapping[str, Any] = {
            "kind": "savedmodel",
            "name": name or str(folder),
            "network": f"{self.spec.name} {self.spec.mode}",
            "taps": len(self.taps),
        }

    def run(self, chunks: Sequence[Array]) -> list[Moment]:
        """Return the activations for a video.

        Args:
            chunks: each (batch, 3, frames, height, width), RGB in [0, 1].

        Raises:
            ComparisonError: TensorFlow cannot run the graph on it.
        """
        states = self._initial(chunks[0])
        moments = []
        for chunk in chunks:
            feeds = {"image": _channels_last(chunk), **states}
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
                    activations[tap] = _channels_first(value, chunk.shape[0])
                cut = {self.taps[taps[-1]]: values[self.taps[taps[-1]]]}
            after: dict[str, Array] = {}
            for argument, (name, node) in self._states.items():
                states[argument] = found[node]
                value = _channels_first(found[node], chunk.shape[0])
                # Every frame count of TensorFlow is one state here, and must be one number.
                if name in after and not np.array_equal(after[name], value):
                    raise ComparisonError(f"the reference's frame counts differ: {argument}")
                after[name] = value
            moments.append(Moment(activations, after))
        return moments

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


class _Executor:
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


def _channels_last(x: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def _channels_first(x: Array, batch: int) -> Array:
    """Return a value of TensorFlow's in PyTorch's layout.

    (batch, frames, height, width, channels), or (batch * frames, height, width, channels) of a
    network whose frames are folded into its batch; one number per video as it is.
    """
    if x.ndim == 4:
        x = x.reshape(batch, -1, *x.shape[1:])
    if x.ndim == 1 and x.shape[0] == 1:
        x = np.repeat(x, batch)
    return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if x.ndim == 5 else x


FILE_VERSION = 1


class SavedReference:
    """Activations from a file that `save_reference` wrote; needs no TensorFlow.

    Attributes:
        chunks: the video that they belong to.

    Raises:
        ComparisonError: it is no such file.
    """

    table: Mapping[str, str] | None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            with np.load(path, allow_pickle=False) as content:
                header = json.loads(str(content["header"]))
                if header["version"] != FILE_VERSION:
                    raise ComparisonError(
                        f"{path}: version {header['version']} of the file, this release reads "
                        f"{FILE_VERSION}; save the reference again"
                    )
                arrays = {name: content[name] for name in content.files if name != "header"}
        except ComparisonError:
            raise
        # numpy's reader raises errors of every type on damaged files.
        except Exception as error:
            raise ComparisonError(
                f"{path}: no reference that 'movinet-port parity --save-reference' wrote "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
            ) from error
        self.table = header["table"]
        self.description: Mapping[str, Any] = {**header["description"], "file": str(path)}
        self.spec = ModelSpec.from_dict(header["spec"]) if header["spec"] else None
        self.parameters: Mapping[str, Tensor] = {
            name.removeprefix("parameter/"): torch.from_numpy(value)
            for name, value in arrays.items()
            if name.startswith("parameter/")
        }
        self._moments = []
        for number in range(header["chunks"]):
            self._moments.append(
                Moment(
                    _with_prefix(arrays, f"{number}/tap/"),
                    _with_prefix(arrays, f"{number}/state/"),
                )
            )
        self.chunks = [moment.activations[INPUT] for moment in self._moments]

    def run(self, chunks: Sequence[Array]) -> list[Moment]:
        """Return the saved activations.

        Raises:
            ComparisonError: the video is another one.
        """
        same = len(chunks) == len(self.chunks) and all(
            np.array_equal(a, b) for a, b in zip(chunks, self.chunks, strict=True)
        )
        if not same:
            shapes = [chunk.shape for chunk in self.chunks]
            raise ComparisonError(
                f"{self.description['file']} was saved for another video (chunks {shapes}); "
                f"leave the input out to use the one in the file"
            )
        return self._moments


def _with_prefix(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }


def save_reference(
    reference: Reference, chunks: Sequence[Array], path: str | os.PathLike[str]
) -> None:
    """Run a reference on a video and write all that a comparison needs of it into a ``.npz``.

    Args:
        reference: to run.
        chunks: the video, each chunk (batch, channels, frames, height, width).
        path: file to write.

    Raises:
        MovinetPortError: the file cannot be written.
    """
    arrays: dict[str, Array] = {}
    for number, moment in enumerate(reference.run(chunks)):
        arrays.update({f"{number}/tap/{name}": v for name, v in moment.activations.items()})
        arrays.update({f"{number}/state/{name}": v for name, v in moment.states.items()})
    arrays.update({f"parameter/{name}": v.numpy() for name, v in reference.parameters.items()})
    spec = getattr(reference, "spec", None)
    header = {
        "version": FILE_VERSION,
        "description": dict(reference.description),
        "table": None if reference.table is None else dict(reference.table),
        "spec": spec.to_dict() if spec is not None else None,
        "chunks": len(chunks),
    }
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, header=np.array(json.dumps(header)), **arrays)  # type: ignore[arg-type]


class FunctionReference:
    """Any program that gives named activations, with the pairing of names as data.

    Args:
        function: from one chunk to (activations, or activations and states), arrays by name.
        table: name of an activation -> path of the module in the PyTorch network.
        name: for the report.
        channels_last: whether the function takes and gives (batch, ..., channels).
        parameters: of the reference, under the PyTorch network's names and layouts.
    """

    def __init__(
        self,
        function: Callable[[Array], Mapping[str, Any]],
        table: Mapping[str, str],
        name: str = "function",
        *,
        channels_last: bool = False,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.table: Mapping[str, str] | None = dict(table)
        self.parameters: Mapping[str, Tensor] = dict(parameters or {})
        self.description: Mapping[str, Any] = {"kind": "function", "name": name}
        self._function = function
        self._channels_last = channels_last

    def run(self, chunks: Sequence[Array]) -> list[Moment]:
        """Return what the function gives for each chunk."""
        return [self._moment(chunk) for chunk in chunks]

    def _moment(self, chunk: Array) -> Moment:
        given = _channels_last(chunk) if self._channels_last else chunk
        # Copies: TensorFlow's own memory must not be written to.
        found = {name: np.array(value) for name, value in self._function(given).items()}
        if self._channels_last:
            found = {
                name: np.ascontiguousarray(np.moveaxis(value, -1, 1)) if value.ndim > 2 else value
                for name, value in found.items()
            }
        return Moment({INPUT: chunk, **found})


class ModelReference:
    """Another PyTorch network.

    Args:
        model: any module; it is run as it is.
        table: name of an activation -> path of the module in the network under test.
        paths: name of an activation -> path of the module in `model`; by default as in `table`.
        name: for the report.
    """

    def __init__(
        self,
        model: nn.Module,
        table: Mapping[str, str] | None = None,
        paths: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> None:
        from parity.subject import Subject

        self.table = table
        self._subject = Subject(model, paths or table)
        self.parameters: Mapping[str, Tensor] = self._subject.parameters()
        self.description: Mapping[str, Any] = {
            "kind": "pytorch",
            "name": name or type(model).__name__,
        }

    def run(self, chunks: Sequence[Array]) -> list[Moment]:
        """Return the network's activations."""
        recorded = self._subject.run(chunks)
        return [
            Moment(
                {name: value.float().numpy() for name, value in moment.activations.items()},
                {name: value.numpy() for name, value in moment.states.items()},
            )
            for moment in recorded
        ]
