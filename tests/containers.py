"""Writes one network of random weights into every container, under every spelling of its names.

The names and layouts are spelt out here a second time, from the authors' files, on purpose: nothing
of `converters` is used.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from movinet_port import ModelSpec

Array = NDArray[np.float32]

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
STATISTICS = ("gamma", "beta", "moving_mean", "moving_variance")


@dataclasses.dataclass(frozen=True)
class Record:
    """One variable of the network, under each of its names.

    ``hub``, ``release`` and ``later`` are full names: of the hub's models and the releases before
    2.8, ``b0/l0``; of 2.7, ``block0_layer0``; of 2.8 and later. ``value`` is TensorFlow's,
    ``weight`` is in PyTorch's layout with five axes.
    """

    canonical: str
    object_path: str
    hub: str
    release: str
    later: str
    keras_3: str
    first_port: str
    value: Array
    weight: Array


@dataclasses.dataclass(frozen=True)
class _Conv:
    """A convolution, its names up to its variables, and what comes with it."""

    canonical: str
    path: str
    full: str
    keras_3: str
    port: str
    shape: tuple[int, int, int, int, int]  # out, in / groups, frames, height, width
    depthwise: bool = False
    norm: bool = True
    number: int = 0  # Keras's, of the inner 2-D convolution


def _make_divisible(value: float) -> int:
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


def _convolutions(spec: ModelSpec) -> Iterator[tuple[tuple[int, int] | None, _Conv | str]]:
    """Yield ((block, layer) or None, convolution or scalar) in the network's order."""
    yield (
        None,
        _Conv("stem", "_stem", "stem/stem", "_stem", "conv1", (spec.stem.filters, 3, *_k(spec))),
    )
    entering = spec.stem.filters
    for i, block in enumerate(spec.blocks):
        rows = zip(block.expand_filters, block.kernel_sizes, block.strides, strict=True)
        for j, (expand, kernel, strides) in enumerate(rows):
            out = block.base_filters
            inner = "_mobile_bottleneck/"
            for conv in (
                _Conv(
                    "expansion",
                    "_expansion",
                    "bneck/expansion",
                    f"{inner}_expansion_layer",
                    "expand",
                    (expand, entering, 1, 1, 1),
                ),
                _Conv(
                    "depthwise",
                    "_feature",
                    "bneck/feature",
                    f"{inner}_feature_layer",
                    "deep",
                    (expand, 1, *kernel),
                    depthwise=True,
                ),
                _Conv(
                    "projection",
                    "_projection",
                    "bneck/projection",
                    "_projection",
                    "project",
                    (out, expand, 1, 1, 1),
                    number=3,
                ),
            ):
                yield (i, j), conv
            if spec.se_type != "none":
                pooled = 2 * expand if spec.se_type == "2plus3d" else expand
                hidden = _make_divisible(0.25 * pooled)
                for part, tensor, shape, number in (
                    ("reduce", "fc1", (hidden, pooled, 1, 1, 1), 1),
                    ("expand", "fc2", (expand, hidden, 1, 1, 1), 2),
                ):
                    conv = _Conv(
                        f"squeeze_excitation.{part}",
                        f"_attention/_se_{part}",
                        f"bneck/se/se_{part}",
                        f"{inner}_attention_layer/_se_{part}",
                        f"se.{tensor}",
                        shape,
                        norm=False,
                        number=number,
                    )
                    yield (i, j), conv
                if spec.positional_encoding:
                    yield (i, j), "squeeze_excitation.positional_encoding.scale"
            strided = strides != (1, 1, 1)
            if strided or entering != out:
                conv = _Conv(
                    "skip",
                    "_skip/_projection",
                    "bneck/skip/skip_project",
                    "_skip/_projection",
                    f"res.{int(strided)}",
                    (out, entering, 1, 1, 1),
                    number=4,
                )
                yield (i, j), conv
            yield (i, j), "rezero.scale"
            entering = out
    head = spec.head
    for conv in (
        _Conv(
            "head",
            "_project",
            "head/project",
            "_project",
            "conv7",
            (head.project_filters, entering, 1, 1, 1),
        ),
        _Conv(
            "classifier.hidden",
            "_head",
            "classifier_head/head",
            "_head",
            "classifier.0",
            (head.head_filters, head.project_filters, 1, 1, 1),
            norm=False,
        ),
        _Conv(
            "classifier.output",
            "_classifier",
            "classifier_head/classifier",
            "_classifier",
            "classifier.3",
            (spec.num_classes, head.head_filters, 1, 1, 1),
            norm=False,
            number=1,
        ),
    ):
        yield None, conv


def _k(spec: ModelSpec) -> tuple[int, int, int]:
    return spec.stem.kernel_size


SCALARS = {
    "rezero.scale": (
        "_mobile_bottleneck/_rezero/scale",
        "{layer}/scale",
        "_mobile_bottleneck/_rezero/vars/0",
        "alpha",
    ),
    "squeeze_excitation.positional_encoding.scale": (
        "_attention/_pos_encoding/_rezero/scale",
        "scale",
        "_mobile_bottleneck/_attention_layer/_pos_encoding/_rezero/vars/0",
        "",
    ),
}


def records(spec: ModelSpec, seed: int = 0) -> list[Record]:
    """Return every variable of the network, each with a random value."""
    rng = np.random.default_rng(seed)
    found: list[Record] = []
    order = -1  # of the bottleneck layer in the network
    seen: tuple[int, int] | None = None
    layers = sum(len(block.expand_filters) for block in spec.blocks)
    for place, item in _convolutions(spec):
        if place is not None and place != seen:
            seen, order = place, order + 1
        if place is not None:
            owner = f"block{place[0]}_layer{place[1]}."
            outer = f"layer_with_weights-0/layer_with_weights-{order + 1}/"
            number = f"_{order}" if order else ""
            keras = f"layers/movinet/layers/movinet_block{number}/"
            port = f"blocks.b{place[0]}_l{place[1]}."
            hub, release = f"b{place[0]}/l{place[1]}", f"block{place[0]}_layer{place[1]}"
        else:
            assert isinstance(item, _Conv)
            owner = port = hub = release = ""
            outer, keras = {
                "stem": (
                    "layer_with_weights-0/layer_with_weights-0/",
                    "layers/movinet/layers/stem/",
                ),
                "head": (
                    f"layer_with_weights-0/layer_with_weights-{layers + 1}/",
                    "layers/movinet/layers/head/",
                ),
            }.get(item.canonical, ("layer_with_weights-1/", "layers/classifier_head/"))
        if isinstance(item, str):
            path, full, keras_tail, port_tail = SCALARS[item]
            value = np.float32(rng.uniform(0.2, 0.8))
            long = full.format(layer=release)
            found.append(
                Record(
                    owner + item,
                    outer + path,
                    full.format(layer=hub),
                    long,
                    long,
                    keras + keras_tail,
                    port + port_tail,
                    np.asarray(value),
                    np.asarray(value),
                )
            )
            continue
        prefixes = (f"{hub}/" if hub else "", f"{release}/" if release else "")
        for record in _records_of(spec, item, rng):
            found.append(
                dataclasses.replace(
                    record,
                    canonical=owner + record.canonical,
                    object_path=outer + record.object_path,
                    hub=prefixes[0] + record.hub,
                    release=prefixes[1] + record.release,
                    later=prefixes[1] + record.later,
                    keras_3=keras + record.keras_3,
                    first_port=port + record.first_port,
                )
            )
    return found


def _records_of(spec: ModelSpec, conv: _Conv, rng: np.random.Generator) -> Iterator[Record]:
    out, inner, frames, height, width = conv.shape
    flat = spec.conv_type == "2plus1d"
    parts = [("", conv.shape)]
    if spec.conv_type != "3d":
        parts = [("", (out, inner, 1, height, width))]
        if frames > 1:
            parts.append(("temporal", (out, inner, frames, 1, 1)))
    for temporal, shape in parts:
        suffix = f"_{temporal}" if temporal else ""
        prefix = f"{temporal}_" if temporal else ""
        weight = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)
        dimension = "conv2d" if flat else "conv3d"
        port = f"{conv.port}.conv_{2 if temporal else 1}."
        variable = "kernel"
        layer = f"{dimension}{suffix}"
        if flat:
            variable = "depthwise_kernel" if conv.depthwise else "kernel"
            number = 1 if temporal else conv.number
            kind = "depthwise_conv2d" if conv.depthwise else "conv2d"
            layer += f"/{kind}" + (f"_{number}" if number else "")
        wrapped = f"_conv{suffix}" + ("/_conv" if flat else "")
        names = [
            (f"{layer}/{variable}", "weight", 0, _kernel(weight, flat, conv, temporal), weight)
        ]
        if not conv.norm:
            bias = rng.normal(0, 0.2, out).astype(np.float32)
            names.append((f"{layer}/bias", "bias", 1, bias, bias))
        for name, leaf, index, value, torch_value in names:
            full = f"{conv.full}/{name}"
            yield Record(
                f"{conv.canonical}.{prefix}conv.{leaf}",
                f"{conv.path}/{wrapped}/{name.rpartition('/')[2]}",
                full,
                full,
                full,
                f"{conv.keras_3}/{wrapped}/vars/{index}",
                f"{port}{dimension}.{leaf}",
                value,
                torch_value,
            )
        if not conv.norm:
            continue
        leaves = ("weight", "bias", "running_mean", "running_var")
        for index, (statistic, leaf) in enumerate(zip(STATISTICS, leaves, strict=True)):
            low, high = (0.5, 1.5) if index in (0, 3) else (-0.3, 0.3)
            value = rng.uniform(low, high, out).astype(np.float32)
            short = f"{conv.full}/bn{suffix}/{statistic}"
            inside = f"{conv.full}/conv2d{suffix}/bn{suffix}/{statistic}"
            norm = f"_conv{suffix}/_batch_norm_op" if flat else f"_batch_norm{suffix}"
            yield Record(
                f"{conv.canonical}.{prefix}norm.{leaf}",
                f"{conv.path}/_batch_norm{suffix}/{statistic}",
                short,
                short,
                inside if flat else short,
                f"{conv.keras_3}/{norm}/vars/{index}",
                f"{port}norm.{leaf}",
                value,
                value,
            )


def _kernel(weight: Array, flat: bool, conv: _Conv, temporal: str) -> Array:
    """Return a weight in TensorFlow's layout."""
    if not flat:  # (frames, height, width, in / groups, out)
        return weight.transpose(2, 3, 4, 1, 0)
    # A temporal convolution has its frames where a spatial one has the height.
    plane = weight[:, :, :, :, 0] if temporal else weight[:, :, 0]
    return plane.transpose(2, 3, 0, 1) if conv.depthwise else plane.transpose(2, 3, 1, 0)


def with_values(variables: list[Record], values: Mapping[str, Array]) -> list[Record]:
    """Return the variables with other values: object path -> value in TensorFlow's layout."""
    found = []
    for record in variables:
        value = np.asarray(values[record.object_path])
        weight = value
        if value.ndim == 5:
            weight = value.transpose(4, 3, 0, 1, 2)
        elif value.ndim == 4:
            depthwise = record.object_path.endswith("depthwise_kernel")
            weight = value.transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1))
        weight = weight.reshape(record.weight.shape)
        found.append(dataclasses.replace(record, value=value, weight=weight))
    return found


def state_dict(variables: list[Record]) -> dict[str, torch.Tensor]:
    """Return what every container of these variables is to become."""
    weights = {r.canonical: torch.from_numpy(np.array(r.weight)) for r in variables}
    for name in [name for name in weights if name.endswith("running_var")]:
        tracked = name.replace("running_var", "num_batches_tracked")
        weights[tracked] = torch.tensor(0)
    return weights


# Writers: each takes the variables, and a path to write to; it returns what to give the converter.


def write_checkpoint(
    variables: list[Record],
    prefix: Path,
    *,
    root: str = "model/",
    names: str = "hub",
    extra: Mapping[str, tuple[str, Any]] | None = None,
    slots: tuple[str, ...] = (),
    also: Callable[[Record], str | None] = lambda record: None,
) -> Path:
    """Write a TF2 object-graph checkpoint.

    Args:
        variables: the network's.
        prefix: the checkpoint's.
        root: under which name the network hangs.
        names: which of a record's full names.
        extra: object path -> (full name, value) of what is there besides.
        slots: names of the optimizer's variables for each of the network's.
        also: a second path of a variable from the root.
    """
    import tensorflow as tf
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.nodes.add()
    tensors: dict[str, Any] = {}

    def node_at(path: str, last: int | None = None) -> int:
        number = 0
        parts = path.split("/")
        for depth, name in enumerate(parts):
            node = graph.nodes[number]
            child = next((c for c in node.children if c.local_name == name), None)
            if child is None:
                known = last if depth == len(parts) - 1 else None
                child = node.children.add(
                    local_name=name, node_id=len(graph.nodes) if known is None else known
                )
                if known is None:
                    graph.nodes.add()
            number = child.node_id
        return number

    def add(number: int, key: str, full_name: str, value: Any) -> None:
        graph.nodes[number].attributes.add(
            name="VARIABLE_VALUE", full_name=full_name, checkpoint_key=key + VALUE
        )
        tensors[key + VALUE] = value

    for record in variables:
        path = root + record.object_path
        full_name = getattr(record, names)
        number = node_at(path)
        add(number, path, full_name, record.value)
        second = also(record)
        if second is not None:
            node_at(second, number)
        for slot in slots:
            optimizer = node_at("optimizer")
            slot_number = len(graph.nodes)
            graph.nodes.add()
            add(
                slot_number,
                f"{path}/.OPTIMIZER_SLOT/optimizer/{slot}",
                f"{full_name}/{slot}",
                record.value / 2 if slot == "average" else np.zeros_like(record.value),
            )
            graph.nodes[optimizer].slot_variables.add(
                original_variable_node_id=number, slot_name=slot, slot_variable_node_id=slot_number
            )
    for path, (full_name, value) in (extra or {}).items():
        add(node_at(path), path, full_name, value)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=[*tensors, OBJECT_GRAPH],
        shape_and_slices=[""] * (len(tensors) + 1),
        tensors=[*tensors.values(), graph.SerializeToString()],
    )
    return prefix


def shard(prefix: Path, target: Path) -> Path:
    """Write the checkpoint at `prefix` again with its data in two files."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(prefix))
    keys = sorted(reader.get_variable_to_shape_map())
    halves = [keys[: len(keys) // 2], keys[len(keys) // 2 :]]
    parts = []
    for number, half in enumerate(halves):
        part = target.parent / f"part-{number}"
        tf.raw_ops.SaveV2(
            prefix=str(part),
            tensor_names=half,
            shape_and_slices=[""] * len(half),
            tensors=[reader.get_tensor(key) for key in half],
        )
        parts.append(str(part))
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(target))
    return target


def write_hdf5(
    variables: list[Record], path: Path, *, names: str = "later", whole_model: bool = False
) -> Path:
    """Write full names grouped by layer, as Keras 2 does; `whole_model` with a configuration."""
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole_model else file
        groups: dict[str, list[str]] = {"image": [], "movinet": [], "classifier_head": []}
        for record in variables:
            name = f"{getattr(record, names)}:0"
            layer = "classifier_head" if name.startswith("classifier_head") else "movinet"
            root.require_group(layer).create_dataset(name, data=record.value)
            groups[layer].append(name)
        root.attrs["layer_names"] = list(groups)
        for layer, listed in groups.items():
            # A long list is cut into several attributes.
            for number, start in enumerate(range(0, len(listed), 100)):
                chunk = listed[start : start + 100]
                root.require_group(layer).attrs[f"weight_names{number}"] = chunk
        if whole_model:
            file.attrs["model_config"] = json.dumps({"class_name": "MovinetClassifier"})
            file.create_dataset("optimizer_weights/Adam/m/stem:0", data=np.zeros(3))
    return path


def write_weights_h5(variables: list[Record], path: Path | io.BytesIO) -> None:
    """Write Keras 3's weights file."""
    with h5py.File(path, "w") as file:
        for record in variables:
            file.create_dataset(record.keras_3, data=record.value)
        file.create_dataset("optimizer/vars/0", data=np.int64(7))


def write_keras(variables: list[Record], path: Path, config: Mapping[str, Any]) -> Path:
    """Write a ``.keras`` file."""
    weights = io.BytesIO()
    write_weights_h5(variables, weights)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights.getvalue())
    return path


def write_first_port(
    variables: list[Record], path: Path, *, prefix: str = "", wrapper: str | None = None
) -> Path:
    """Write the first PyTorch port's state dict."""
    found: dict[str, Any] = {}
    for record in variables:
        weight = torch.from_numpy(np.array(record.weight))
        if "conv2d.weight" in record.first_port:
            weight = weight[..., 0] if ".conv_2." in record.first_port else weight[:, :, 0]
        found[prefix + record.first_port] = weight.contiguous()
        if record.first_port.endswith("running_var"):
            tracked = record.first_port.replace("running_var", "num_batches_tracked")
            found[prefix + tracked] = torch.tensor(0)
    torch.save({wrapper: found, "epoch": 3} if wrapper else found, path)
    return path
