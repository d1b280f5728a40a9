"""The way back: a network's weights as the files that the authors' code restores.

A TF2 checkpoint needs no TensorFlow: its graph of objects is written as the authors' network has
it, objects without variables included, because `assert_existing_objects_matched` asks for those
too. A SavedModel and a Keras file are written by the authors' own network, restored from such a
checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from converters import dialects, protos
from converters.authors import build_authors_network, export_authors_network
from converters.containers.bundle import OBJECT_GRAPH_KEY, write_bundle
from converters.containers.checkpoint import read_checkpoint
from converters.containers.hdf5 import read_hdf5
from converters.containers.saved_model import read_saved_model
from converters.containers.variables import SourceVariables
from converters.convert import Progress, fill
from converters.errors import ConversionError, VerificationError
from converters.layouts import from_torch_layout
from converters.locate import locate_variables
from converters.tensorflow import import_tensorflow, quiet
from converters.verify import require, verify_saved_model
from movinet_port.agreement import Agreement
from movinet_port.checkpoint import Checkpoint, check_fit, listing
from movinet_port.export import Exported, Request, Target, export_checkpoint
from movinet_port.export.targets import Notes
from movinet_port.files import whole_file, whole_folder
from movinet_port.model import MoViNet
from movinet_port.spec import ModelSpec


@dataclasses.dataclass(frozen=True)
class TensorFlowVariable:
    """A variable of the authors' network.

    Attributes:
        parameter: canonical name of the parameter it holds.
        path: object path from the model.
        full_name: TensorFlow's name of it, as tf-models-official 2.8 and later give it.
        value: in TensorFlow's layout.
    """

    parameter: str
    path: str
    full_name: str
    value: NDArray[np.float32]


def tensorflow_variables(
    spec: ModelSpec, state_dict: Mapping[str, Tensor]
) -> list[TensorFlowVariable]:
    """Return every variable of the authors' network; each parameter fills exactly one.

    Args:
        spec: the architecture.
        state_dict: of ``MoViNet(spec)``.

    Raises:
        CheckpointError: the weights do not fit the spec.
        ConversionError: two parameters would fill the same variable.
    """
    with torch.device("meta"):
        check_fit(MoViNet(spec).state_dict(), state_dict)
    owners = _owners(spec)
    variables = []
    for parameter, tensor in state_dict.items():
        if parameter.endswith(dialects.NUM_BATCHES_TRACKED):
            continue
        owner, module, leaf = _split(parameter)
        # The authors run a network of conv_type 2plus1d with 2-D kernels throughout.
        two_d = spec.conv_type == "2plus1d"
        value = tensor.detach().to("cpu", torch.float32).numpy()
        path = dialects.spelling(dialects.OBJECT_PATH, module, leaf, two_d=two_d)
        variables.append(
            TensorFlowVariable(
                parameter,
                f"{owners[owner]}/{path}",
                _full_name(owner, module, leaf, two_d),
                np.asarray(from_torch_layout(parameter, value, 4 if two_d else 5)),
            )
        )
    paths = [variable.path for variable in variables]
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise ConversionError(f"more than one parameter would fill {listing(twice)}")
    return variables


def _split(parameter: str) -> tuple[str, str, str]:
    """Return owner, module and leaf of a parameter; the owner of a layer's own is the layer."""
    unique = next((m for m in dialects.UNIQUE_MODULES if parameter.startswith(f"{m}.")), None)
    if unique is not None:
        return unique, unique, parameter[len(unique) + 1 :]
    owner, _, rest = parameter.partition(".")
    # "conv.weight" is a leaf of "depthwise", "scale" of "rezero".
    parts = rest.split(".")
    length = 1 if parts[-1] == "scale" else 2
    return owner, ".".join(parts[:-length]), ".".join(parts[-length:])


def _owners(spec: ModelSpec) -> dict[str, str]:
    """Return the object path of the stem, each layer, the head and the classifier."""
    layers = ["stem", *(layer.name for layer in spec.layers()), "head"]
    backbone = "layer_with_weights-0"
    paths = {name: f"{backbone}/layer_with_weights-{i}" for i, name in enumerate(layers)}
    classifier = "layer_with_weights-1"
    return {**paths, "classifier.hidden": classifier, "classifier.output": classifier}


def _full_name(owner: str, module: str, leaf: str, two_d: bool) -> str:
    if leaf == "scale":
        # The positional encodings' scalars have no owner in their name.
        return f"{owner}/scale" if module == "rezero" else "scale"
    name = dialects.spelling(dialects.FULL_NAME, module, leaf, two_d=two_d)
    return name if owner == module else f"{owner}/{name}"


def state_count(spec: ModelSpec) -> int:
    """Return how many states the authors' network has: inputs that come before its layers."""
    if not spec.causal:
        return 0
    pools = spec.se_type in ("3d", "2plus3d")
    each = 2 * pools + spec.positional_encoding
    layers = list(spec.layers())
    buffers = sum(layer.kernel_size[0] > 1 for layer in layers) + (spec.stem.kernel_size[0] > 1)
    return buffers + each * len(layers) + 2


def export_to_tensorflow(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    target: str,
    *,
    verify: bool = True,
    progress: Progress = lambda activity: None,
) -> Exported:
    """Write a network's weights as the authors' code reads them; whole or not at all.

    Every parameter fills one variable and every variable is filled once. What was written is read
    again, and has to give the same bits back.

    Args:
        checkpoint: spec and weights.
        path: the prefix of a TF2 checkpoint, the folder of a SavedModel, or the Keras file.
        target: key of `TARGETS`.
        verify: of a SavedModel, run both sides and compare the logits.
        progress: called with a line of text when a step begins.

    Raises:
        AuthorsMissingError: the target needs the authors' code, which is not installed, or which
            has no such network.
        ConversionError: the network cannot be written as this.
        ExportError: there is no such target.
        VerificationError: the SavedModel gives other logits; nothing was written.
    """
    return export_checkpoint(
        checkpoint, path, target, verify=verify, progress=progress, targets=TARGETS
    )


def _write_checkpoint(request: Request, variables: Sequence[TensorFlowVariable]) -> None:
    path = request.path
    if not path.name or path.is_dir():
        raise ConversionError(f"cannot write {path}: it is a folder; name the checkpoint's prefix")
    request.progress(f"writing {path}")
    with _temporary_folder(path) as folder:
        prefix = _save_checkpoint(request.checkpoint.spec, variables, folder)
        _check_bits(request, read_checkpoint(folder / f"{prefix.name}.index"))
        files = sorted(folder.iterdir(), key=lambda file: file.suffix == ".index")
        index = path.with_name(f"{path.name}.index")
        # The index makes it a checkpoint: gone first, back last.
        index.unlink(missing_ok=True)
        for file in files:
            file.replace(path.with_name(path.name + file.name.removeprefix(prefix.name)))


def _save_checkpoint(
    spec: ModelSpec, variables: Sequence[TensorFlowVariable], folder: Path
) -> Path:
    # tf.train.Checkpoint.restore asks for the counter.
    counter = _Object(full_name="save_counter", value=np.asarray(1, np.int64))
    objects = [_Object({"model": _object_tree(spec, variables), "save_counter": counter})]
    paths = {objects[0]: (0, "")}
    graph, tensors = protos.TrackableObjectGraph(), {}
    for item in objects:  # which grows meanwhile
        node, (_, path) = graph.nodes.add(), paths[item]
        for name, child in item.children.items():
            if child not in paths:
                paths[child] = (len(objects), f"{path}{name}/")
                objects.append(child)
            node.children.add(node_id=paths[child][0], local_name=name)
        if item.value is not None:
            key = f"{path}.ATTRIBUTES/VARIABLE_VALUE"
            node.attributes.add(name="VARIABLE_VALUE", full_name=item.full_name, checkpoint_key=key)
            tensors[key] = item.value
    tensors[OBJECT_GRAPH_KEY] = np.array(graph.SerializeToString(), object)
    write_bundle(folder / "ckpt", tensors)
    return folder / "ckpt"


def _write_saved_model(
    request: Request, variables: Sequence[TensorFlowVariable]
) -> Agreement | None:
    agreement = None
    with whole_folder(request.path) as folder:
        model = _authors_model(request, variables)
        with quiet():
            export_authors_network(model, str(folder), causal=request.checkpoint.spec.causal)
        _check_bits(request, read_saved_model(folder))
        if request.verify:
            request.progress("running both sides on a random clip")
            agreement = verify_saved_model(folder, request.checkpoint.build(), engine="tensorflow")
            require(agreement)
    return agreement


def _write_keras(request: Request, variables: Sequence[TensorFlowVariable]) -> None:
    path = request.path
    keras_3 = path.name.endswith(KERAS_3_SUFFIX)
    if path.suffix != ".h5":
        raise ConversionError(
            f"a Keras file of weights ends in .h5 or {KERAS_3_SUFFIX}, found {path}"
        )
    if request.checkpoint.spec.positional_encoding and not keras_3:
        raise ConversionError(
            f"cannot write {path}: the scalars of the positional encodings are all called 'scale', "
            f"which Keras cannot write into one .h5; let the name end in {KERAS_3_SUFFIX}, or use "
            f"tf-checkpoint"
        )
    model = _authors_model(request, variables)
    with whole_file(path) as temporary, _temporary_folder(path) as folder:
        file = folder / (f"ckpt{KERAS_3_SUFFIX}" if keras_3 else "ckpt.h5")
        with quiet():
            model.save_weights(str(file))
        _check_bits(request, read_hdf5(file))
        file.replace(temporary)


KERAS_3_SUFFIX = ".weights.h5"


def _row(
    title: str,
    write: Callable[[Request, Sequence[TensorFlowVariable]], Agreement | None],
    extra: str | None = None,
    verified: bool = False,
) -> Target:
    """Return the row of a target that holds the authors' variables."""

    def whole(request: Request) -> tuple[Agreement | None, Notes]:
        checkpoint = request.checkpoint
        with quiet():
            variables = tensorflow_variables(checkpoint.spec, checkpoint.state_dict)
            agreement = write(request, variables)
        notes = [("variables", f"{len(variables)}, read back bit for bit")]
        # A SavedModel says by itself which network it is.
        notes += [("restoring", note) for note in _notes(checkpoint.spec) if not verified]
        return agreement, tuple(notes)

    return Target(title, whole, extra, verified, sizes="none")


TARGETS: Mapping[str, Target] = {
    "tf-checkpoint": _row("TF2 checkpoint", _write_checkpoint),
    "saved-model": _row("SavedModel", _write_saved_model, "reference", verified=True),
    "keras-h5": _row("Keras file", _write_keras, "reference"),
}


def _authors_model(request: Request, variables: Sequence[TensorFlowVariable]) -> Any:
    """Return the authors' network with these weights."""
    tf, spec = import_tensorflow(), request.checkpoint.spec
    request.progress("building the authors' network")
    with quiet(), tempfile.TemporaryDirectory(prefix="movinet-port-") as folder:
        model = build_authors_network(spec)
        prefix = _save_checkpoint(spec, variables, Path(folder))
        status = tf.train.Checkpoint(model=model).restore(str(prefix))
        try:
            status.assert_existing_objects_matched()
        except AssertionError as error:
            reason = str(error).splitlines()[0]
            raise ConversionError(
                f"the authors' network does not take the weights: {reason}"
            ) from error
    if len(model.variables) != len(variables):
        raise ConversionError(
            f"the authors' network has {len(model.variables)} variables, the weights fill "
            f"{len(variables)}"
        )
    request.progress(f"writing {request.path}")
    return model


def _check_bits(request: Request, source: SourceVariables) -> None:
    """Read every parameter back: a file that gives other bits is not kept."""
    checkpoint = request.checkpoint
    found = fill(checkpoint.spec, locate_variables(source))
    wrong = [
        name
        for name, tensor in checkpoint.state_dict.items()
        if not name.endswith(dialects.NUM_BATCHES_TRACKED)
        and not torch.equal(found[name], tensor.detach().to("cpu", torch.float32))
    ]
    if wrong:
        raise VerificationError(
            f"{request.path}: read again, {listing(wrong)} are not what was written; nothing was "
            f"kept"
        )


@contextlib.contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a folder next to `path`, so that a file in it can be moved there at once."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise ConversionError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that exists, is "
            f"writable and has room, with -o"
        ) from error


def _notes(spec: ModelSpec) -> tuple[str, ...]:
    """Return what to build the authors' network with: weights do not say it."""
    arguments = {
        "causal": spec.causal,
        "conv_type": spec.conv_type,
        "se_type": spec.se_type,
        "use_positional_encoding": spec.positional_encoding,
        "activation": spec.activation,
    }
    known = {"sigmoid": "'sigmoid'", "hard_sigmoid_relu6": "'hard_sigmoid'"}
    gate = known.get(spec.gate, "tf.keras.activations.hard_sigmoid")
    built = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    notes = [f"build Movinet with {built}, gating_activation={gate}"]
    if spec.causal_padding == "legacy" or spec.pool_counts_padding:
        notes.append(
            "the padding is the legacy one: tf-models-official 2.6 and before only give the same "
            "logits"
        )
    return tuple(notes)


# Objects of the authors' network that hold no variable, by what they are part of. Where a value is
# given, the object is another name of that one.
_CONVOLUTION: Mapping[str, str | None] = {
    "_activation_layer": None,
    "_batch_norm/axis": None,
    "_stream_buffer": None,
}
_WRAPPED: Mapping[str, str | None] = {
    "_conv/_batch_norm_op": "_batch_norm",
    "_conv/_activation_op": "_activation_layer",
    "_conv_temporal/_batch_norm_op": "_batch_norm_temporal",
    "_conv_temporal/_activation_op": "_activation_layer",
}
_LAYER: Mapping[str, str | None] = {
    "_mobile_bottleneck/_expansion_layer": "_expansion",
    "_mobile_bottleneck/_feature_layer": "_feature",
    "_mobile_bottleneck/_projection_layer": "_projection",
    "_mobile_bottleneck/_attention_layer": "_attention",
    "_mobile_bottleneck/_skip_layer": "_skip",
    "_mobile_bottleneck/_identity": None,
    "_mobile_bottleneck/_stochastic_depth": None,
    "_mobile_bottleneck/_rezero/_scale": "_mobile_bottleneck/_rezero/scale",
    "_attention/_spatiotemporal_pool": None,
    "_attention/_spatial_pool": None,
    "_attention/_pos_encoding/_rezero/_scale": "_attention/_pos_encoding/_rezero/scale",
    "_skip/_pool": None,
}
_HEAD: Mapping[str, str | None] = {"_pool": None}
_CLASSIFIER: Mapping[str, str | None] = {
    "_dropout": None,
    "_max_pool": None,
    "_squeeze": None,
    "_cast": None,
}


@dataclasses.dataclass(eq=False)
class _Object:
    """An object of the authors' network, and its variable, if it is one."""

    children: dict[str, _Object] = dataclasses.field(default_factory=dict)
    full_name: str = ""
    value: NDArray[Any] | None = None

    def at(self, path: str) -> _Object:
        """Return the object at a path, made if it is not there."""
        item = self
        for name in filter(None, path.split("/")):
            item = item.children.setdefault(name, _Object())
        return item

    def has(self, path: str) -> bool:
        """Return whether there is an object at a path."""
        name, _, rest = path.partition("/")
        return name in self.children and (not rest or self.children[name].has(rest))

    def add(self, objects: Mapping[str, str | None]) -> None:
        """Add objects without variables, or other names of objects, where their owners are."""
        for path, same in objects.items():
            parent, _, leaf = path.rpartition("/")
            if same is None:
                self.at(path)
            elif self.has(same) and (not parent or self.has(parent.partition("/")[0])):
                self.at(parent).children[leaf] = self.at(same)


def _object_tree(spec: ModelSpec, variables: Sequence[TensorFlowVariable]) -> _Object:
    """Return the graph of the authors' network's objects, from the model."""
    root = _Object()
    for variable in variables:
        item = root.at(variable.path)
        item.full_name, item.value = variable.full_name, variable.value
    owners = _owners(spec)
    for owner, path in owners.items():
        place = root.at(path)
        if owner.startswith("classifier"):
            place.add(_CLASSIFIER)
        elif owner == "head":
            place.add(_HEAD)
        elif owner != "stem":
            place.add(_LAYER)
    for variable in variables:
        block, _, leaf = variable.path.rpartition("/_conv")
        if leaf.endswith("kernel") and not block.endswith("_conv"):
            root.at(block).add(_CONVOLUTION)
            if spec.conv_type == "2plus1d":
                root.at(block).add(_WRAPPED)
    # Keras counts its layers: inputs first, then what has weights.
    inputs = 1 + state_count(spec)
    backbone = root.at("layer_with_weights-0")
    for item in (root, backbone):
        for number in range(inputs):
            item.at(f"layer-{number}")
    for number in range(len(owners) - 2):  # the classifier, listed twice, is none of them
        layer = backbone.at(f"layer_with_weights-{number}")
        backbone.children[f"layer-{inputs + number}"] = layer
    root.children[f"layer-{inputs}"] = root.children["_backbone"] = backbone
    root.children[f"layer-{inputs + 1}"] = root.at("layer_with_weights-1")
    root.at("_input_specs")
    backbone.at("_state_specs")
    return root
