"""One network in every container, and what is refused of each."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import containers
import damage
import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from containers import Record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import movinet_port
import weights
from converters import Conversion, convert_source
from converters.containers import CONTAINERS as KINDS
from converters.containers import Container
from converters.containers.checkpoint import object_paths
from converters.containers.variables import SourceVariables, Variable
from converters.convert import _convert_opened
from converters.fetch import Source, SourceError
from movinet_port import BlockSpec, HeadSpec, ModelSpec, StemSpec
from movinet_port.command_line.cli import main
from movinet_port.errors import MovinetPortError
from movinet_port.variants import get_spec

Spec = Callable[..., ModelSpec]
Writer = Callable[[list[Record], Path], Path]

DATA = Path(__file__).parent / "data"
SAMPLE = Path(weights.__file__).parent / "samples/movinet_mini_stream.tar.gz"

CONFIG = {
    "module": "official.projects.movinet.modeling.movinet_model",
    "class_name": "MovinetClassifier",
    "config": {
        "activation": "simple_swish",
        "backbone": {"class_name": "Movinet", "config": {"model_id": "custom", "causal": True}},
    },
}


def with_config(**backbone: Any) -> dict[str, Any]:
    """The configuration of a ``.keras`` file with these fields of the backbone."""
    config: dict[str, Any] = json.loads(json.dumps(CONFIG))
    config["config"]["backbone"]["config"] = backbone
    return config


def converted(source: Path, **options: Any) -> Conversion:
    return convert_source(source, verify=False, **options)


def error(source: Path | str, **options: Any) -> str:
    """The one line that a user reads."""
    with pytest.raises(MovinetPortError) as caught:
        convert_source(source, verify=False, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert str(source) in text
    return text


def assert_same(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert different == []


def _training(variables: list[Record], path: Path) -> Path:
    extra = {
        "save_counter": ("save_counter", np.int64(3)),
        "global_step": ("global_step", np.int64(9)),
        "optimizer/_iterations": ("iteration", np.int64(9)),
        "optimizer/_variables/0": ("SGD/m/stem", np.zeros(3, np.float32)),
        "train_metrics/0/total": ("total", np.float32(1)),
        "ema/decay": ("decay", np.float32(0.99)),
    }
    prefix = containers.write_checkpoint(
        variables,
        path / "ckpt-9",
        extra=extra,
        slots=("momentum", "average"),
        also=lambda record: _in_backbone(record.object_path),
    )
    (path / "checkpoint").write_text(
        'model_checkpoint_path: "/gone/ckpt-9"\nall_model_checkpoint_paths: "/gone/ckpt-9"\n'
    )
    shutil.copy(f"{prefix}.index", path / "ckpt-1.index")
    return path


def _in_backbone(path: str) -> str | None:
    layer, _, rest = path.partition("/")
    return f"backbone/{rest}" if layer == "layer_with_weights-0" else None


def _sharded(variables: list[Record], path: Path) -> Path:
    whole = containers.write_checkpoint(variables, path / "whole/ckpt")
    return containers.shard(whole, path / "ckpt")


def _archive(variables: list[Record], path: Path) -> Path:
    prefix = containers.write_checkpoint(variables, path / "model/ckpt-1")
    (prefix.parent / "checkpoint").write_text('model_checkpoint_path: "ckpt-1"\n')
    archive = path / "movinet.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(prefix.parent, arcname="movinet")
    return archive


def _weights_h5(variables: list[Record], path: Path) -> Path:
    containers.write_weights_h5(variables, path / "x.weights.h5")
    return path / "x.weights.h5"


# The gate, where a container does not say, is that of the era that names the variables so.
ERA_3 = {"gate": "hard_sigmoid_relu6"}
CONTAINERS: dict[str, tuple[Writer, Mapping[str, Any]]] = {
    "checkpoint": (lambda v, p: containers.write_checkpoint(v, p / "ckpt"), {}),
    "checkpoint-at-root": (lambda v, p: containers.write_checkpoint(v, p / "ckpt", root=""), {}),
    "checkpoint-release": (
        lambda v, p: containers.write_checkpoint(v, p / "ckpt", names="release"),
        {},
    ),
    "checkpoint-later": (
        lambda v, p: containers.write_checkpoint(v, p / "ckpt", names="later"),
        ERA_3,
    ),
    "training-checkpoint": (_training, {}),
    "sharded-checkpoint": (_sharded, {}),
    "checkpoint-archive": (_archive, {}),
    "hdf5-hub": (lambda v, p: containers.write_hdf5(v, p / "x.h5", names="hub"), {}),
    "hdf5-release": (lambda v, p: containers.write_hdf5(v, p / "x.h5", names="release"), {}),
    "hdf5-later": (lambda v, p: containers.write_hdf5(v, p / "x.h5"), ERA_3),
    "hdf5-whole-model": (
        lambda v, p: containers.write_hdf5(v, p / "x.h5", whole_model=True),
        ERA_3,
    ),
    "hdf5-other-suffix": (lambda v, p: containers.write_hdf5(v, p / "weights", names="hub"), {}),
    "keras-3-weights": (_weights_h5, ERA_3),
    "keras-3": (
        lambda v, p: containers.write_keras(v, p / "x.keras", with_config(causal=True)),
        ERA_3,
    ),
    "first-port": (lambda v, p: containers.write_first_port(v, p / "x.pth"), {}),
    "first-port-wrapped": (
        lambda v, p: containers.write_first_port(
            v, p / "x.tar", prefix="module.", wrapper="state_dict"
        ),
        {},
    ),
    "first-port-model": (
        lambda v, p: containers.write_first_port(v, p / "x.pt", wrapper="model"),
        {},
    ),
}


# Fixture -> which of a record's names it has.
SAVED_MODELS = {
    "era1_mini_base": "hub",
    "era1_mini_stream": "hub",
    "era2_mini_stream": "hub",
    "era2_mini_stream_posenc": "hub",
    "era3_mini_base": "later",
    "era3_mini_stream": "later",
}


def unpacked(name: str, folder: Path) -> Path:
    archive = DATA / f"{name}.tar.gz"
    return damage.unpack(archive if archive.exists() else SAMPLE, folder)


def keys_of(variables: damage.Variables) -> dict[str, str]:
    """Return object path -> key of the network's variables in a SavedModel."""
    nodes = variables.graph.nodes
    paths = object_paths([[(c.local_name, c.node_id) for c in node.children] for node in nodes])
    return {
        paths[number]: attribute.checkpoint_key
        for number, node in enumerate(nodes)
        for attribute in node.attributes
        if paths.get(number, "").startswith("layer_with_weights")
    }


@pytest.mark.parametrize("name", SAVED_MODELS)
def test_saved_model_and_every_other_container_give_the_same_bits(
    name: str, tmp_path: Path
) -> None:
    folder = unpacked(name, tmp_path / "model")
    saved = damage.read_variables(folder / "variables/variables")
    keys = keys_of(saved)
    exported = converted(folder).checkpoint
    variables = containers.records(exported.spec)
    full_names = {getattr(r, SAVED_MODELS[name]) for r in variables}
    assert {r.object_path for r in variables} == keys.keys()
    assert full_names == {
        a.full_name
        for node in saved.graph.nodes
        for a in node.attributes
        if a.checkpoint_key in set(keys.values())
    }
    variables = containers.with_values(
        variables, {path: saved.tensors[key] for path, key in keys.items()}
    )
    for number, (container, (write, _)) in enumerate(CONTAINERS.items()):
        named = not container.startswith(("hdf5", "first-port"))
        if exported.spec.positional_encoding and not named:
            continue
        place = tmp_path / str(number)
        place.mkdir()
        assert_same(converted(write(variables, place)).checkpoint.state_dict, exported.state_dict)


@pytest.mark.parametrize(
    ("one", "other", "differing"),
    [
        ("era1_mini_base", "era3_mini_base", set()),
        ("era1_mini_base", "era1_mini_stream", {"causal", "causal_padding"}),
        ("era2_mini_stream_posenc", "era3_mini_stream", {"gate"}),
    ],
)
def test_saved_models_of_two_eras_give_the_same_bits(
    one: str, other: str, differing: set[str], tmp_path: Path
) -> None:
    folders = [unpacked(name, tmp_path / name) for name in (one, other)]
    source, target = (damage.read_variables(f / "variables/variables") for f in folders)
    keys = keys_of(source)
    for path, key in keys_of(target).items():
        target.tensors[key] = source.tensors[keys[path]]
    target.write(folders[1] / "variables/variables")
    first, second = (converted(folder).checkpoint for folder in folders)
    assert_same(second.state_dict, first.state_dict)
    specs = first.spec.to_dict(), second.spec.to_dict()
    assert {field for field in specs[0] if specs[0][field] != specs[1][field]} == differing


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_of_a_stream_network_give_the_same_bits(
    container: str, mini_spec: Spec, tmp_path: Path
) -> None:
    write, fields = CONTAINERS[container]
    variables = containers.records(mini_spec("stream"))
    conversion = converted(write(variables, tmp_path))
    assert_same(conversion.checkpoint.state_dict, containers.state_dict(variables))
    assert conversion.checkpoint.spec == mini_spec("stream", **fields)


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_of_a_base_network_give_the_same_bits(
    container: str, mini_spec: Spec, tmp_path: Path
) -> None:
    write, _ = CONTAINERS[container]
    variables = containers.records(mini_spec())
    if container == "keras-3":
        config = with_config(causal=False)
        source = containers.write_keras(variables, tmp_path / "x.keras", config)
    else:
        source = write(variables, tmp_path)
    conversion = converted(source)
    assert_same(conversion.checkpoint.state_dict, containers.state_dict(variables))
    assert conversion.checkpoint.spec == mini_spec()


@pytest.mark.parametrize(
    "container", [name for name in CONTAINERS if not name.startswith(("hdf5", "first-port"))]
)
def test_every_positional_encoding_keeps_its_own_scale(
    container: str, mini_spec: Spec, tmp_path: Path
) -> None:
    write, fields = CONTAINERS[container]
    variables = containers.records(mini_spec("stream", positional_encoding=True))
    scales = [r.weight.item() for r in variables if "_pos_encoding" in r.object_path]
    assert len(scales) == len(set(scales)) == 9
    conversion = converted(write(variables, tmp_path))
    assert_same(conversion.checkpoint.state_dict, containers.state_dict(variables))
    assert conversion.checkpoint.spec == mini_spec("stream", positional_encoding=True, **fields)


@pytest.mark.parametrize("conv_type", ["2plus1d", "3d_2plus1d"])
def test_split_convolutions_convert_into_each_other_without_loss(
    conv_type: str, mini_spec: Spec, tmp_path: Path, video: Callable[..., torch.Tensor]
) -> None:
    other = ({"2plus1d", "3d_2plus1d"} - {conv_type}).pop()
    variables = containers.records(mini_spec("stream", conv_type=conv_type))
    source = containers.write_checkpoint(variables, tmp_path / "ckpt")
    first, second = converted(source).checkpoint, converted(source, conv_type=other).checkpoint
    assert (first.spec.conv_type, second.spec.conv_type) == (conv_type, other)
    assert_same(first.state_dict, second.state_dict)
    clip = video(frames=5, dtype=torch.float32)
    with torch.inference_mode():
        logits = [checkpoint.build()(clip) for checkpoint in (first, second)]
    assert torch.allclose(logits[0], logits[1], rtol=1e-5, atol=1e-5)


def test_conv_type_is_an_option_of_the_command(mini_spec: Spec, tmp_path: Path) -> None:
    variables = containers.records(mini_spec("stream", conv_type="3d_2plus1d"))
    source = containers.write_first_port(variables, tmp_path / "x.pth")
    output = tmp_path / "x.pt"
    options = ["--hub-url", str(source), "--conv-type", "2plus1d", "-o", str(output)]
    done = CliRunner().invoke(main, ["convert", *options])
    assert (done.exit_code, done.stderr) == (0, "")
    assert movinet_port.load_checkpoint(output).spec == mini_spec("stream")


def test_provenance_of_a_single_file_is_its_own_sum(mini_spec: Spec, tmp_path: Path) -> None:
    path = containers.write_hdf5(containers.records(mini_spec()), tmp_path / "x.h5")
    provenance = converted(path).checkpoint.provenance
    assert provenance["source"] == str(path)
    assert provenance["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_convolutions_of_another_function_are_not_made(mini_spec: Spec, tmp_path: Path) -> None:
    source = containers.write_checkpoint(containers.records(mini_spec()), tmp_path / "ckpt")
    assert "conv_type was given as '2plus1d'" in error(source, conv_type="2plus1d")


# Fine-tunes


@pytest.mark.parametrize("classes", [2, 1000])
@pytest.mark.parametrize("container", ["checkpoint", "hdf5-hub", "keras-3", "first-port"])
def test_fine_tunes_have_their_own_classes(
    container: str, classes: int, mini_spec: Spec, tmp_path: Path
) -> None:
    write, _ = CONTAINERS[container]
    variables = containers.records(mini_spec("stream", num_classes=classes))
    checkpoint = converted(write(variables, tmp_path)).checkpoint
    assert checkpoint.spec.num_classes == classes
    assert_same(checkpoint.state_dict, containers.state_dict(variables))


def test_head_replaced_alone_is_read_with_its_new_names(mini_spec: Spec, tmp_path: Path) -> None:
    old = containers.records(mini_spec("stream"))
    new = containers.records(mini_spec("stream", num_classes=2), seed=1)
    variables = [r for r in old if not r.canonical.startswith("classifier")]
    # A second head in one session: Keras numbers its inner convolutions on.
    variables += [
        dataclasses.replace(r, hub=re.sub(r"conv2d/conv2d\w*", "conv2d/conv2d_7", r.hub))
        for r in new
        if r.canonical.startswith("classifier")
    ]
    wanted = containers.state_dict(variables)
    for source in (
        containers.write_checkpoint(variables, tmp_path / "ckpt"),
        containers.write_hdf5(variables, tmp_path / "x.h5", names="hub"),
    ):
        assert_same(converted(source).checkpoint.state_dict, wanted)


def test_the_second_model_of_a_session_has_a_numbered_head(mini_spec: Spec, tmp_path: Path) -> None:
    variables = containers.records(mini_spec("stream"))
    numbered = [
        dataclasses.replace(r, hub=r.hub.replace("classifier_head/", "classifier_head_1/"))
        for r in variables
    ]
    assert numbered != variables
    source = containers.write_hdf5(numbered, tmp_path / "x.h5", names="hub")
    assert_same(converted(source).checkpoint.state_dict, containers.state_dict(variables))


def test_batches_that_the_first_port_counted_are_kept(mini_spec: Spec, tmp_path: Path) -> None:
    path = containers.write_first_port(containers.records(mini_spec()), tmp_path / "x.pth")
    content = torch.load(path)
    content["conv1.conv_1.norm.num_batches_tracked"] = torch.tensor(5)
    torch.save(content, path)
    found = converted(path).checkpoint.state_dict["stem.norm.num_batches_tracked"]
    assert (found.item(), found.dtype) == (5, torch.int64)


# A container of another kind


def test_new_container_is_one_row(
    mini_spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A numpy archive of object paths, as a reader and a row of the table."""
    variables = containers.records(mini_spec("stream"))
    path = tmp_path / "weights.npz"
    np.savez(path, **{record.object_path: record.value for record in variables})

    def find(given: Path) -> Path | None:
        return given if given.suffix == ".npz" else None

    def read(given: Path) -> SourceVariables:
        arrays = np.load(given)
        names = {record.object_path: record.hub for record in variables}
        return SourceVariables(
            [
                Variable(
                    path=name,
                    full_name=names[name],
                    shape=arrays[name].shape,
                    dtype=str(arrays[name].dtype),
                    node=-1,
                    read=functools.partial(arrays.__getitem__, name),
                )
                for name in arrays.files
            ]
        )

    assert "are not read here" in error(path)
    monkeypatch.setitem(KINDS, "npz", Container(find, read))
    conversion = converted(path)
    assert_same(conversion.checkpoint.state_dict, containers.state_dict(variables))
    assert conversion.checkpoint.provenance["tools"].keys() == {"movinet-port", "torch", "python"}


# What is beside the network


def test_training_checkpoint_lists_what_is_not_the_network(mini_spec: Spec, tmp_path: Path) -> None:
    variables = containers.records(mini_spec("stream"))
    conversion = converted(_training(variables, tmp_path))
    beside = {name for name in conversion.outside if ".OPTIMIZER_SLOT" not in name}
    assert beside == {
        "save_counter",
        "global_step",
        "optimizer/_iterations",
        "optimizer/_variables/0",
        "train_metrics/0/total",
        "ema/decay",
    }
    slots = [name for name in conversion.outside if ".OPTIMIZER_SLOT" in name]
    assert len(slots) == 2 * len(variables)
    assert len(conversion.used) == len(variables)


def test_unknown_variable_in_the_network_is_refused(mini_spec: Spec, tmp_path: Path) -> None:
    extra = {"model/layer_with_weights-0/_extra/kernel": ("extra/kernel", np.zeros(3, "f4"))}
    source = containers.write_checkpoint(
        containers.records(mini_spec()), tmp_path / "ckpt", extra=extra
    )
    assert "none of a MoViNet: model/layer_with_weights-0/_extra/kernel (extra" in error(source)


def test_backbone_alone_is_refused_and_says_so(mini_spec: Spec, tmp_path: Path) -> None:
    variables = [
        dataclasses.replace(r, object_path=r.object_path.partition("/")[2])
        for r in containers.records(mini_spec())
        if not r.canonical.startswith("classifier")
    ]
    source = containers.write_checkpoint(variables, tmp_path / "ckpt", root="backbone/")
    assert "a backbone without a classifier" in error(source)


# What is read and what is assumed


def findings(conversion: Conversion) -> dict[str, tuple[Any, str]]:
    return {finding.field: (finding.value, finding.how) for finding in conversion.findings}


def test_checkpoint_says_what_it_assumes(mini_spec: Spec, tmp_path: Path) -> None:
    variables = containers.records(mini_spec("stream"))
    conversion = converted(containers.write_checkpoint(variables, tmp_path / "ckpt"))
    found = findings(conversion)
    assert {field for field, (_, how) in found.items() if how == "read"} == {
        "conv_type",
        "se_type",
        "positional_encoding",
        "causal_padding",
    }
    assert {field for field, (_, how) in found.items() if how == "assumed"} == {
        "causal",
        "activation",
        "gate",
        "classifier_activation",
        "norm_epsilon",
        "strides",
    }
    assert set(conversion.checkpoint.provenance["assumed"]) == {
        field for field, (_, how) in found.items() if how == "assumed"
    }


def test_what_is_given_is_not_assumed(mini_spec: Spec, tmp_path: Path) -> None:
    variables = containers.records(mini_spec())
    source = containers.write_checkpoint(variables, tmp_path / "ckpt")
    given: dict[str, Any] = {
        "causal": True,
        "causal_padding": "legacy",
        "gate": "hard_sigmoid_keras",
        "activation": "relu6",
        "se_type": "2d",
        "norm_epsilon": 1e-5,
    }
    conversion = converted(source, **given)
    found = findings(conversion)
    assert {field: found[field] for field in given} == {
        field: (value, "given") for field, value in given.items()
    }
    assert conversion.checkpoint.spec == mini_spec(**given)


@pytest.mark.parametrize(("names", "padding"), [("hub", "legacy"), ("release", "same")])
def test_causal_3d_networks_pad_as_in_the_time_of_their_names(
    names: str, padding: str, mini_spec: Spec, tmp_path: Path
) -> None:
    variables = containers.records(mini_spec())
    source = containers.write_checkpoint(variables, tmp_path / "ckpt", names=names)
    spec = converted(source, mode="stream").checkpoint.spec
    assert spec == mini_spec(causal=True, causal_padding=padding)


CATALOGUE = "https://storage.googleapis.com/tf_model_garden/vision/movinet/"


@pytest.mark.parametrize(
    ("file", "written", "expected"),
    [
        ("movinet_a0_base.tar.gz", {}, {}),
        (
            "movinet_a0_stream_legacy.tar.gz",
            {},
            {"causal": True, "causal_padding": "legacy"},
        ),
        (
            "movinet_a0_stream.tar.gz",
            {"mode": "stream"},
            {"mode": "stream", "gate": "hard_sigmoid_keras"},
        ),
        # Another network behind the address than the published one: the variables decide.
        ("movinet_a0_base.tar.gz", {"mode": "stream"}, {"mode": "stream"}),
    ],
)
def test_published_address_decides_what_variables_do_not_say(
    file: str, written: dict[str, Any], expected: dict[str, Any], mini_spec: Spec, tmp_path: Path
) -> None:
    variables = containers.records(mini_spec(**written))
    prefix = containers.write_checkpoint(variables, tmp_path / "ckpt")
    url = CATALOGUE + file
    index = Path(f"{prefix}.index")
    source = Source(index, "checkpoint", {"source": url, "sha256": ""})
    conversion = _convert_opened(source, {}, lambda activity: None)
    assert conversion.checkpoint.spec == mini_spec(**expected)
    fits = ("stream.tar" in file or "legacy" not in file) and bool(written) == ("stream" in file)
    if fits or "legacy" in file:
        causal = next(f for f in conversion.findings if f.field == "causal")
        assert (causal.how, causal.where) == ("assumed", f"as published at {url}")


def test_keras_configuration_is_read(mini_spec: Spec, tmp_path: Path) -> None:
    variables = containers.records(mini_spec("stream"))
    config = with_config(causal=False, activation="relu6", norm_epsilon=1e-4)
    path = containers.write_keras(variables, tmp_path / "x.keras", config)
    conversion = converted(path)
    found = findings(conversion)
    assert found["causal"] == (False, "read")
    assert found["activation"] == ("relu6", "read")
    assert found["norm_epsilon"] == (1e-4, "read")
    assert found["classifier_activation"] == ("swish", "read")
    assert found["gate"][1] == "assumed"
    assert "'hard_swish', but the source has 'relu6'" in error(path, activation="hard_swish")


def test_keras_3_finds_blocks_by_the_states(tiny_spec: Spec, tmp_path: Path) -> None:
    spec = _two_blocks_of_one_width(tiny_spec("stream"))
    variables = containers.records(spec)
    config = with_config(causal=True)
    states = {f"state_block{i}_layer{j}_pool_buffer": [] for i in range(5) for j in range(2)}
    config["build_config"] = {"input_shape": {"image": [], **states}}
    checkpoint = converted(
        containers.write_keras(variables, tmp_path / "x.keras", config)
    ).checkpoint
    assert checkpoint.spec == spec.replace(gate="hard_sigmoid_relu6")
    assert_same(checkpoint.state_dict, containers.state_dict(variables))


def test_keras_3_does_not_guess_where_a_block_begins(tiny_spec: Spec, tmp_path: Path) -> None:
    variables = containers.records(_two_blocks_of_one_width(tiny_spec("stream")))
    assert "speak of no block and layer" in error(_weights_h5(variables, tmp_path))


def _two_blocks_of_one_width(spec: ModelSpec) -> ModelSpec:
    """A network of five blocks, of which block 3 starts without stride or another width."""
    block = spec.blocks[0]
    plain = dataclasses.replace(block, strides=((1, 1, 1),) * len(block.strides))
    return spec.replace(blocks=(block, block, block, plain, block))


@pytest.mark.parametrize("member", ["a0", "a3"])
def test_keras_3_knows_the_family_by_its_widths(member: str, tmp_path: Path) -> None:
    spec = get_spec(member, "stream", 3)
    variables = containers.records(spec)
    checkpoint = converted(_weights_h5(variables, tmp_path)).checkpoint
    assert checkpoint.spec == spec.replace(gate="hard_sigmoid_relu6")
    assert_same(checkpoint.state_dict, containers.state_dict(variables))


# The architecture, from names and shapes


KERNELS = [(1, 3, 3), (1, 5, 5), (3, 3, 3), (5, 3, 3), (5, 1, 1)]
WIDTHS = st.integers(1, 5).map(lambda n: 4 * n)


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    """A network of the family's shape, of what can be told from names and shapes."""
    stream = draw(st.booleans())
    se_type = draw(st.sampled_from(["none", "2plus3d" if stream else "3d"]))
    blocks = []
    for index in range(draw(st.integers(1, 6))):
        layers = draw(st.integers(1, 3))
        first = (1, 2, 2) if index in (0, 1, 2, 4) else (1, 1, 1)
        block = BlockSpec(
            base_filters=draw(WIDTHS),
            expand_filters=tuple(draw(WIDTHS) for _ in range(layers)),
            kernel_sizes=tuple(draw(st.sampled_from(KERNELS)) for _ in range(layers)),
            strides=(first, *[(1, 1, 1)] * (layers - 1)),
        )
        blocks.append(block)
    fields: dict[str, Any] = {"se_type": se_type}
    if stream:
        spans = any(kernel[0] > 1 for block in blocks for kernel in block.kernel_sizes)
        conv_types = ["2plus1d", "3d_2plus1d"] if spans else ["2plus1d"]
        fields.update(
            causal=True,
            conv_type=draw(st.sampled_from(conv_types)),
            activation="hard_swish",
            positional_encoding=se_type != "none" and draw(st.booleans()),
        )
        if se_type != "none":
            fields["gate"] = "hard_sigmoid_keras"
    return ModelSpec(
        name="custom",
        stem=StemSpec(draw(WIDTHS), draw(st.sampled_from([(1, 3, 3), (1, 5, 5)]))),
        blocks=tuple(blocks),
        head=HeadSpec(draw(WIDTHS), draw(WIDTHS)),
        num_classes=draw(st.integers(1, 12)),
        **fields,
    )


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(spec=specs(), names=st.sampled_from(["hub", "release"]), seed=st.integers(0, 99))
def test_random_networks_are_recognised_from_their_variables(
    spec: ModelSpec, names: str, seed: int
) -> None:
    variables = containers.records(spec, seed)
    with tempfile.TemporaryDirectory() as folder:
        source = containers.write_checkpoint(variables, Path(folder) / "ckpt", names=names)
        checkpoint = converted(source).checkpoint
    # Only training runs of the releases are in 3d_2plus1d: nothing such was published.
    if names == "release" and spec.conv_type == "3d_2plus1d" and spec.se_type != "none":
        spec = spec.replace(gate="hard_sigmoid_relu6")
    assert checkpoint.spec == spec
    assert_same(checkpoint.state_dict, containers.state_dict(variables))


# What is refused


def test_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    # The names of MobileNet's variables in Keras.
    names = ["conv1/kernel", "conv_dw_1/depthwise_kernel", "conv_pw_1/kernel", "conv_pw_1_bn/gamma"]
    root = tf.train.Checkpoint(**{f"v{i}": tf.Variable([1.0], name=n) for i, n in enumerate(names)})
    text = error(root.write(str(tmp_path / "ckpt")))
    assert "no MoViNet: none of its 4 variables is one of a MoViNet" in text
    assert "conv1/kernel" in text


@pytest.mark.parametrize("build", ["MobileNetV2", "EfficientNetB0", "Sequential"])
@pytest.mark.parametrize("suffix", [".h5", ".weights.h5", ".keras", ".ckpt"])
def test_other_networks_of_keras_are_refused(build: str, suffix: str, tmp_path: Path) -> None:
    tf_keras = pytest.importorskip("tf_keras")
    if build == "Sequential":
        layers = [tf_keras.layers.Dense(3), tf_keras.layers.Dense(2)]
        model = tf_keras.Sequential(layers)
        model.build((None, 4))
    else:
        model = getattr(tf_keras.applications, build)(
            weights=None, input_shape=(32, 32, 3), classes=3, **_NARROW.get(build, {})
        )
    path = tmp_path / f"x{suffix}"
    model.save(path) if suffix == ".keras" else model.save_weights(path)
    assert "no MoViNet: none of its" in error(path)
    tf_keras.backend.clear_session()


_NARROW: dict[str, dict[str, Any]] = {"MobileNetV2": {"alpha": 0.35}}


@pytest.mark.parametrize("container", ["checkpoint", "hdf5-hub", "first-port", "keras-3-weights"])
@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (2, ("block2_layer0", "skip", "no block and layer")),
        (4, ("block4_layer", "head.conv.weight", "no block and layer")),
    ],
)
def test_network_with_a_block_missing_is_refused(
    container: str, block: int, expected: tuple[str, ...], mini_spec: Spec, tmp_path: Path
) -> None:
    write, _ = CONTAINERS[container]
    variables = [
        r
        for r in containers.records(mini_spec("stream"))
        if not r.canonical.startswith(f"block{block}_")
    ]
    text = error(write(variables, tmp_path))
    assert any(part in text for part in expected)


@pytest.mark.parametrize("container", ["checkpoint", "hdf5-later", "first-port", "keras-3"])
@pytest.mark.parametrize(
    "missing",
    [
        "stem.conv.weight",
        "block1_layer0.skip.conv.weight",
        "block3_layer0.depthwise.temporal_norm.running_mean",
        "block4_layer1.rezero.scale",
        "classifier.output.conv.bias",
    ],
)
def test_missing_variable_is_named(
    container: str, missing: str, mini_spec: Spec, tmp_path: Path
) -> None:
    write, _ = CONTAINERS[container]
    variables = containers.records(mini_spec("stream"))
    kept = [record for record in variables if record.canonical != missing]
    assert len(kept) == len(variables) - 1
    text = error(write(kept, tmp_path))
    # A skip projection without its convolution is no longer one of its layer's strides.
    assert missing in text or ("skip" in missing and "block1_layer0: no skip projection" in text)


@pytest.mark.parametrize("container", ["checkpoint", "hdf5-later", "first-port", "keras-3-weights"])
def test_swapped_variables_are_named_where_shapes_no_longer_fit(
    container: str, mini_spec: Spec, tmp_path: Path
) -> None:
    write, _ = CONTAINERS[container]
    variables = containers.records(mini_spec("stream"))
    one, other = "block1_layer0.projection.norm.bias", "block4_layer0.depthwise.norm.bias"
    by_name = {record.canonical: record for record in variables}
    swapped = {one: by_name[other], other: by_name[one]}
    variables = [
        dataclasses.replace(r, value=swapped[r.canonical].value, weight=swapped[r.canonical].weight)
        if r.canonical in swapped
        else r
        for r in variables
    ]
    text = error(write(variables, tmp_path))
    assert f"is (48,), expected (16,) for {one}" in text
    assert f"is (16,), expected (48,) for {other}" in text


@pytest.mark.parametrize("container", ["checkpoint", "hdf5-later", "first-port", "keras-3-weights"])
def test_values_that_are_not_finite_are_named(
    container: str, mini_spec: Spec, tmp_path: Path
) -> None:
    write, _ = CONTAINERS[container]
    variables = containers.records(mini_spec())
    variables[5].value.flat[0] = variables[5].weight.flat[0] = np.nan
    assert "values that are NaN or infinite" in error(write(variables, tmp_path))


@pytest.mark.parametrize("part", [0, 1])
def test_absent_data_shard_is_named(part: int, mini_spec: Spec, tmp_path: Path) -> None:
    source = _sharded(containers.records(mini_spec()), tmp_path)
    name = f"ckpt.data-{part:05}-of-00002"
    (tmp_path / name).unlink()
    with pytest.raises(SourceError, match=f"{name} is missing"):
        convert_source(source)


def test_index_whose_checksum_fails_is_refused(mini_spec: Spec, tmp_path: Path) -> None:
    source = containers.write_checkpoint(containers.records(mini_spec()), tmp_path / "ckpt")
    index = tmp_path / "ckpt.index"
    content = bytearray(index.read_bytes())
    content[len(content) // 2] ^= 0x10
    index.write_bytes(content)
    text = error(source)
    assert "cannot read its" in text
    assert "get it again" in text


@pytest.mark.parametrize("container", ["hdf5-later", "keras-3-weights", "keras-3", "first-port"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_truncated_file_is_refused(
    container: str, share: float, mini_spec: Spec, tmp_path: Path
) -> None:
    write, _ = CONTAINERS[container]
    path = write(containers.records(mini_spec("stream")), tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "cannot read it" in error(path)


def test_state_dict_of_movinet_port_is_converted_already(mini_spec: Spec, tmp_path: Path) -> None:
    path = containers.write_first_port(containers.records(mini_spec()), tmp_path / "x.pth")
    movinet_port.save(converted(path).checkpoint, tmp_path / "x.pt")
    assert "is converted already" in error(tmp_path / "x.pt")


class _Model(torch.nn.Module):
    pass


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (_Model(), "save model.state_dict(), not the model"),
        ([1, 2], "holds list, expected a state dict"),
        ({}, "expected a state dict"),
        ({"conv1.conv_1.conv3d.weight": 3}, "is int, expected a plain tensor"),
        ({"w": torch.eye(3).to_sparse()}, "is a tensor of torch.sparse_coo"),
        ({"w": torch.eye(3)}, "no MoViNet: none of its 1 variables"),
    ],
)
def test_pytorch_file_of_something_else_is_refused(
    content: Any, expected: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "x.pth")
    assert expected in error(tmp_path / "x.pth")


def test_hdf5_with_values_in_another_file_is_refused(mini_spec: Spec, tmp_path: Path) -> None:
    path = containers.write_hdf5(containers.records(mini_spec()), tmp_path / "x.h5")
    (tmp_path / "secret").write_bytes(bytes(64))
    with h5py.File(path, "a") as file:
        file.create_dataset("movinet/out", (8,), "f8", external=[(str(tmp_path / "secret"), 0, 64)])
    assert "keeps its values in another file" in error(path)


def test_hdf5_that_claims_to_be_huge_is_refused_unread(mini_spec: Spec, tmp_path: Path) -> None:
    variables = containers.records(mini_spec(head=HeadSpec(48, 512)))
    path = containers.write_hdf5(variables, tmp_path / "x.h5")
    with h5py.File(path, "a") as file:
        group = file["classifier_head/classifier_head/classifier/conv3d"]
        for name, shape in (("kernel:0", (1, 1, 1, 512, 1 << 20)), ("bias:0", (1 << 20,))):
            del group[name]
            # Stored in pieces, none of them written: the file stays small.
            group.create_dataset(name, shape, "f4", chunks=(1,) * (len(shape) - 1) + (1024,))
    assert "the file is damaged" in error(path)


def test_zip_that_claims_to_be_huge_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.keras"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("model.weights.h5", "w", force_zip64=True) as member,
    ):
        for _ in range(1025):
            member.write(bytes(1 << 20))
    assert "no MoViNet does" in error(path)


# The authors' live code


@pytest.fixture(scope="module")
def trained() -> Any:
    """The authors' small stream model, and what it converts to from a checkpoint."""
    authors = pytest.importorskip("authors")
    pytest.importorskip("official")
    return authors.sample("stream")[0]


@pytest.mark.reference
@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        ("base", {}),
        ("base", {"conv_type": "2plus1d"}),
        ("base", {"conv_type": "3d_2plus1d"}),
        ("base", {"se_type": "none"}),
        ("stream", {}),
        ("stream", {"conv_type": "3d_2plus1d"}),
        ("stream", {"conv_type": "3d", "se_type": "3d"}),
        ("stream", {"positional_encoding": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_files_that_keras_writes_give_the_same_bits(
    mode: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    import authors

    kinds = dict(authors.BASE if mode == "base" else authors.STREAM)
    model = authors.build(authors.MINI, **{**kinds, **changes}, num_classes=5)
    authors.randomise(model, 1)
    checkpoint = authors.save_checkpoint(model, tmp_path / "checkpoint")
    given: dict[str, Any] = {"causal": mode == "stream"}
    wanted = converted(Path(checkpoint), **given).checkpoint
    encodes = "positional_encoding" in changes
    for name, write in (
        ("x.h5", model.save_weights),
        ("whole.h5", model.save),
        ("x.weights.h5", model.save_weights),
        ("x.keras", model.save),
    ):
        path = tmp_path / name
        if encodes and name in ("x.h5", "whole.h5"):
            with pytest.raises(ValueError, match="name already exists"):
                write(path)
            continue
        write(path)
        states = {} if name in ("whole.h5", "x.keras") else given
        found = converted(path, **states).checkpoint
        assert_same(found.state_dict, wanted.state_dict)
        assert found.spec.causal == (mode == "stream")
        assert found.spec.blocks == wanted.spec.blocks
    authors.forget()


@pytest.mark.reference
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "legacy.Adam"])
def test_training_checkpoint_with_an_optimizer_gives_the_same_bits(
    optimizer: str, tmp_path: Path
) -> None:
    import authors
    import tensorflow as tf

    model = authors.build(authors.MINI, **authors.BASE, num_classes=2)
    authors.randomise(model, 1)
    wanted = converted(Path(authors.save_checkpoint(model, tmp_path / "plain"))).checkpoint
    kind: Any = tf.keras.optimizers
    for part in optimizer.split("."):
        kind = getattr(kind, part)
    momentum = {"momentum": 0.9} if optimizer == "SGD" else {}
    instance = kind(learning_rate=0.0, **momentum)
    weights = model.trainable_variables
    instance.apply_gradients([(tf.zeros_like(weight), weight) for weight in weights])
    saved = tf.train.Checkpoint(
        model=model,
        backbone=model.backbone,
        optimizer=instance,
        global_step=tf.Variable(7, dtype=tf.int64),
    )
    conversion = converted(Path(saved.save(str(tmp_path / "training/ckpt"))))
    assert_same(conversion.checkpoint.state_dict, wanted.state_dict)
    assert len(conversion.outside) > len(weights)
    text = error(Path(tf.train.Checkpoint(backbone=model.backbone).save(str(tmp_path / "b/ckpt"))))
    assert "a backbone without a classifier" in text
    authors.forget()


@pytest.mark.reference
@pytest.mark.parametrize("member", ["a3", "a4", "a5"])
def test_every_published_positional_encoding_keeps_its_own_scale(
    member: str, tmp_path: Path
) -> None:
    import authors

    model = authors.build(member, **authors.STREAM, positional_encoding=True, num_classes=3)
    scales: dict[str, float] = {}
    encodings = [v for v in model.variables if v.name == "scale:0"]
    for number, variable in enumerate(encodings):
        variable.assign(0.01 * (number + 1))
    # The authors' layers in the network's order, each with its own encoding.
    for layer in model.backbone.layers:
        name = layer.name
        if name.startswith("block"):
            encoding = layer._mobile_bottleneck._attention_layer._pos_encoding
            scales[name] = float(encoding._rezero._scale.numpy())
    checkpoint = converted(Path(authors.save_checkpoint(model, tmp_path))).checkpoint
    suffix = ".squeeze_excitation.positional_encoding.scale"
    found = {
        name.removesuffix(suffix): tensor.item()
        for name, tensor in checkpoint.state_dict.items()
        if name.endswith(suffix)
    }
    assert checkpoint.spec.name == member
    assert len(set(scales.values())) == len(encodings) == len(list(checkpoint.spec.layers()))
    assert found == scales
    authors.forget()


@pytest.mark.reference
def test_saved_model_and_checkpoint_give_the_same_bits(tmp_path: Path) -> None:
    import authors

    model, _ = authors.sample("stream")
    authors.export_saved_model(model, tmp_path / "exported")
    exported = converted(tmp_path / "exported").checkpoint
    checkpoint = converted(Path(authors.save_checkpoint(model, tmp_path / "saved"))).checkpoint
    assert_same(exported.state_dict, checkpoint.state_dict)
    # The names are those of this release, and so is the gate.
    assert exported.spec == checkpoint.spec
    authors.forget()
