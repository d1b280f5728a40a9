"""Files as people save them: what they put around a network, and what they leave of it."""

from __future__ import annotations

import dataclasses
import pickle
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import containers
import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from converters import ConversionError, convert_source
from converters.containers.bundle import write_bundle
from movinet_port import ModelSpec, MoViNet
from movinet_port.checkpoint import load_checkpoint
from movinet_port.command_line.cli import main
from movinet_port.errors import MovinetPortError

Spec = Callable[..., ModelSpec]
StateDict = dict[str, Tensor]


def convert(path: Path, **options: Any) -> Any:
    return convert_source(path, verify=False, **options)


def refusal(path: Path, **options: Any) -> str:
    """The one line that a user reads."""
    with pytest.raises(ConversionError) as caught:
        convert(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(found: StateDict, wanted: StateDict) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)


# The first PyTorch port ------------------------------------------------------------------------


@pytest.fixture
def port(tmp_path: Path) -> Callable[[ModelSpec], StateDict]:
    def state_dict(spec: ModelSpec, seed: int = 0) -> StateDict:
        variables = containers.records(spec, seed)
        path = containers.write_first_port(variables, tmp_path / "port.pth")
        content: StateDict = torch.load(path)
        return content

    return state_dict


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


HIDDEN = "classifier.0.conv_1.conv3d.weight"


def last_layers(hidden: int) -> dict[str, nn.Module]:
    """What fine-tuning puts in the place of ``model.classifier[3]``."""
    own = nn.Module()
    own.add_module("conv_1", nn.ModuleDict({"conv3d": nn.Conv3d(hidden, 7, 1)}))
    return {
        "conv3d": nn.Conv3d(hidden, 7, (1, 1, 1)),
        "conv2d": nn.Conv2d(hidden, 7, 1),
        "linear": nn.Linear(hidden, 7),
        "sequential": nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(hidden, 7)),
        "own-block": own,
        "own-block-in-sequential": nn.Sequential(own),
    }


@pytest.mark.parametrize("mode", ["base", "stream"])
@pytest.mark.parametrize("kind", list(last_layers(1)))
def test_new_last_layer_is_read(
    kind: str, mode: str, mini_spec: Spec, port: Callable[..., StateDict], tmp_path: Path
) -> None:
    spec = mini_spec(mode)
    content = {k: v for k, v in port(spec).items() if not k.startswith("classifier.3.")}
    layer = last_layers(spec.head.head_filters)[kind]
    parameters = layer.state_dict(prefix="classifier.3.")
    wanted = containers.state_dict(containers.records(spec.replace(num_classes=7)))
    weight, bias = parameters.values()
    wanted["classifier.output.conv.weight"] = weight.reshape(7, -1, 1, 1, 1)
    wanted["classifier.output.conv.bias"] = bias
    checkpoint = convert(saved({**content, **parameters}, tmp_path / "x.pth")).checkpoint
    assert checkpoint.spec == spec.replace(num_classes=7)
    assert same(checkpoint.state_dict, wanted)


def test_two_new_last_layers_are_refused(
    mini_spec: Spec, port: Callable[..., StateDict], tmp_path: Path
) -> None:
    spec = mini_spec()
    content = {k: v for k, v in port(spec).items() if not k.startswith("classifier.3.")}
    head = nn.Sequential(nn.Linear(spec.head.head_filters, 9), nn.ReLU(), nn.Linear(9, 7))
    content |= head.state_dict(prefix="classifier.3.")
    text = refusal(saved(content, tmp_path / "x.pth"))
    assert "classifier.3.0.weight and classifier.3.2.weight both are classifier.output" in text


def averaged(content: StateDict) -> StateDict:
    return {k: v / 2 if v.is_floating_point() else v for k, v in content.items()}


WRAPPERS: dict[str, Callable[[StateDict], Any]] = {
    "net": lambda s: {"net": s, "acc": 91.5, "epoch": 3},
    "weights": lambda s: {"weights": s},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": torch.tensor(1)},
    "nested": lambda s: {"checkpoint": {"state_dict": s}, "args": {"lr": 0.1, "tags": ["a"]}},
    "in a list": lambda s: [s, 3],
    "module": lambda s: {f"module.{k}": v for k, v in s.items()},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "lightning": lambda s: {
        "state_dict": {f"model.{k}": v for k, v in s.items()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(1.0)}}}],
        "lr_schedulers": [{"last_epoch": 3}],
        "callbacks": {"checkpoint": {"best_model_score": torch.tensor(0.5)}},
    },
    "optimizer": lambda s: {
        "model": s,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "lr_scheduler": {"_last_lr": [0.1]},
        "scaler": {"scale": 65536.0},
    },
    "averaged besides": lambda s: {"model": s, "model_ema": averaged(s)},
    "averaged model": lambda s: {
        **{f"module.{k}": v for k, v in s.items()},
        "n_averaged": torch.tensor(4),
    },
}


@pytest.mark.parametrize("wrapper", list(WRAPPERS))
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".pth.tar", ""])
def test_state_dict_is_found_in_what_is_around_it(
    wrapper: str, suffix: str, mini_spec: Spec, port: Callable[..., StateDict], tmp_path: Path
) -> None:
    path = saved(WRAPPERS[wrapper](port(mini_spec())), tmp_path / f"x{suffix}")
    conversion = convert(path)
    wanted = containers.state_dict(containers.records(mini_spec()))
    assert same(conversion.checkpoint.state_dict, wanted)
    assert conversion.averages == ("model_ema" if wrapper == "averaged besides" else "")


def test_averaged_network_is_taken_when_asked_for(
    mini_spec: Spec, port: Callable[..., StateDict], tmp_path: Path
) -> None:
    content = port(mini_spec())
    path = saved({"model": content, "model_ema": {"module": averaged(content)}}, tmp_path / "x.pth")
    wanted = averaged(containers.state_dict(containers.records(mini_spec())))
    for chosen in ({"ema": True}, {"root": "model_ema"}, {"root": "model_ema.module"}):
        conversion = convert(path, **chosen)
        assert same(conversion.checkpoint.state_dict, wanted)
        assert not conversion.averages
    plain = saved(content, tmp_path / "y.pth")
    assert "it has no averaged weights; leave --ema out" in refusal(plain, ema=True)


def test_averages_of_some_weights_leave_the_others_as_they_are(
    mini_spec: Spec, port: Callable[..., StateDict], tmp_path: Path
) -> None:
    content = port(mini_spec())
    shadow = {k: v for k, v in averaged(content).items() if "running" not in k}
    path = saved({"state_dict": content, "ema": {"shadow": shadow}}, tmp_path / "x.pth")
    found = convert(path, ema=True).checkpoint.state_dict
    plain = containers.state_dict(containers.records(mini_spec()))
    assert torch.equal(found["stem.conv.weight"], plain["stem.conv.weight"] / 2)
    assert torch.equal(found["stem.norm.running_var"], plain["stem.norm.running_var"])


def test_one_of_two_networks_is_taken_by_its_root(
    mini_spec: Spec, port: Callable[..., StateDict], tmp_path: Path
) -> None:
    streams = {"rgb": port(mini_spec(), 0), "flow": port(mini_spec(), 1)}
    content = {f"{root}.{k}": v for root, state in streams.items() for k, v in state.items()}
    path = saved(content, tmp_path / "x.pth")
    text = refusal(path)
    assert "rgb.conv1.conv_1.conv3d.weight and flow.conv1.conv_1.conv3d.weight both are" in text
    assert "--root NAME" in text
    for seed, root in enumerate(streams):
        wanted = containers.state_dict(containers.records(mini_spec(), seed))
        assert same(convert(path, root=root).checkpoint.state_dict, wanted)
    assert "no MoViNet" in refusal(path, root="audio")


def test_layers_replaced_by_identity_are_left_out(
    mini_spec: Spec, port: Callable[..., StateDict], tmp_path: Path
) -> None:
    block = mini_spec().blocks[1]
    rows = {
        name: (getattr(block, name)[0], *[getattr(block, name)[1]] * 3)
        for name in ("expand_filters", "kernel_sizes", "strides")
    }
    whole = mini_spec().blocks
    spec = mini_spec(blocks=(whole[0], dataclasses.replace(block, **rows), *whole[2:]))
    content = port(spec)
    # A layer without a skip projection is the identity where its ReZero is 0.
    model = MoViNet(spec).eval()
    state = containers.state_dict(containers.records(spec))
    for removed in (1, 2):
        state[f"block1_layer{removed}.rezero.scale"] = torch.zeros(())
    model.load_state_dict(state)
    kept = {k: v for k, v in content.items() if not re.search(r"b1_l[12]\.", k)}
    conversion = convert(saved(kept, tmp_path / "x.pth"))
    clip = torch.rand(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(conversion.checkpoint.build()(clip), model(clip))
    finding = next(f for f in conversion.findings if f.field == "layers")
    assert finding.where == "without block1_layer1, block1_layer2, which leave no variables"
    first = {k: v for k, v in content.items() if "b1_l0." not in k}
    assert "block1_layer0 are missing" in refusal(saved(first, tmp_path / "y.pth"))


def test_pruned_weights_are_multiplied_out(
    mini_spec: Spec, port: Callable[..., StateDict], tmp_path: Path
) -> None:
    from torch.nn.utils import prune

    content = port(mini_spec())
    name = "blocks.b1_l0.project.conv_1.conv3d"
    layer = nn.Conv3d(1, 1, 1)
    layer.weight = nn.Parameter(content.pop(f"{name}.weight"))
    prune.l1_unstructured(layer, "weight", 0.5)
    pruned = {f"{name}.{k}": v for k, v in layer.state_dict().items() if k != "bias"}
    assert set(pruned) == {f"{name}.weight_orig", f"{name}.weight_mask"}
    found = convert(saved({**content, **pruned}, tmp_path / "x.pth")).checkpoint.state_dict
    assert torch.equal(found["block1_layer0.projection.conv.weight"], layer.weight)
    assert 0 < (layer.weight == 0).sum() < layer.weight.numel()
    pruned[f"{name}.weight_mask"] = torch.ones(3)
    text = refusal(saved({**content, **pruned}, tmp_path / "y.pth"))
    assert f"{name}.weight_mask is (3,)" in text


def test_format_before_1_6_is_known_by_its_content(
    mini_spec: Spec, port: Callable[..., StateDict], tmp_path: Path
) -> None:
    path = tmp_path / "best"
    torch.save(port(mini_spec()), path, _use_new_zipfile_serialization=False)
    wanted = containers.state_dict(containers.records(mini_spec()))
    assert same(convert(path).checkpoint.state_dict, wanted)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, {"causal": False, "activation": "swish", "gate": "sigmoid"}),
        (
            {"conv_type": "2plus1d"},
            {"causal": False, "activation": "hard_swish", "gate": "hard_sigmoid_keras"},
        ),
        (
            {"se_type": "2plus3d", "causal": True},
            {"causal": True, "activation": "swish", "gate": "sigmoid"},
        ),
        (
            {"conv_type": "2plus1d", "se_type": "2plus3d", "causal": True},
            {"causal": True, "activation": "hard_swish", "gate": "hard_sigmoid_keras"},
        ),
    ],
)
def test_shapes_tell_what_the_first_port_built(
    fields: dict[str, Any],
    told: dict[str, Any],
    mini_spec: Spec,
    port: Callable[..., StateDict],
    tmp_path: Path,
) -> None:
    spec = mini_spec(**fields)
    path = saved(port(spec), tmp_path / "x.pth")
    conversion = convert(path)
    assert conversion.checkpoint.spec == spec.replace(**told)
    assert {f.field for f in conversion.findings if f.how == "read"} >= told.keys()
    mode = "base" if told["causal"] else "stream"
    assert "but the source has" in refusal(path, mode=mode)


@pytest.mark.parametrize("mode", ["base", "stream"])
def test_how_the_first_port_pads_is_assumed_or_said(
    mode: str, mini_spec: Spec, port: Callable[..., StateDict], tmp_path: Path
) -> None:
    path = saved(port(mini_spec(mode)), tmp_path / "x.pth")
    arguments = ["convert", "--hub-url", str(path), "-o", str(tmp_path / "y.pt")]
    result = CliRunner().invoke(main, arguments)
    text = " ".join(result.output.split())
    assert "pool_counts_padding = False is assumed: built with tf_like=True" in text
    assert "(--no-tf-like says otherwise)" in text
    assert load_checkpoint(tmp_path / "y.pt").spec == mini_spec(mode)
    assert CliRunner().invoke(main, [*arguments, "--no-tf-like"]).exit_code == 0
    wanted = mini_spec(mode, causal_padding="legacy", pool_counts_padding=True)
    assert load_checkpoint(tmp_path / "y.pt").spec == wanted


def test_foreign_tensor_is_named_unless_it_is_to_be_ignored(
    mini_spec: Spec, port: Callable[..., StateDict], tmp_path: Path
) -> None:
    content = {"model": port(mini_spec()), "criterion": {"weight": torch.ones(5)}}
    path = saved(content, tmp_path / "x.pth")
    text = refusal(path)
    assert "are none of a MoViNet: criterion.weight; --ignore PATTERN" in text
    conversion = convert(path, ignore=["criterion.*"])
    assert conversion.outside == ("criterion.weight",)


# TensorFlow ------------------------------------------------------------------------------------


def renamed(
    variables: list[containers.Record], path: Callable[[int, containers.Record], str]
) -> list[containers.Record]:
    return [
        dataclasses.replace(record, object_path=path(number, record))
        for number, record in enumerate(variables)
    ]


@pytest.mark.parametrize("mode", ["base", "stream"])
@pytest.mark.parametrize(
    "path",
    [
        lambda number, record: f"layer_with_weights-0/{record.release}:0",
        lambda number, record: f"_all_variables/{number}",
    ],
    ids=["hub.KerasLayer", "model.export"],
)
def test_full_name_tells_where_the_object_path_does_not(
    path: Callable[[int, containers.Record], str], mode: str, mini_spec: Spec, tmp_path: Path
) -> None:
    variables = containers.records(mini_spec(mode))
    extra = {
        "layer_with_weights-0/_func/optimizer/_iterations": ("iteration", np.int64(3)),
        "layer_with_weights-0/_func/keras_api/metrics/0/total": ("total", np.float32(1)),
        "optimizer/_variables/7": ("Adam/m/stem/stem/conv3d/kernel", np.ones(3, np.float32)),
    }
    source = containers.write_checkpoint(
        renamed(variables, path), tmp_path / "ckpt", root="", names="release", extra=extra
    )
    conversion = convert(source)
    assert conversion.checkpoint.spec == mini_spec(mode)
    assert same(conversion.checkpoint.state_dict, containers.state_dict(variables))
    assert set(conversion.outside) == set(extra)


@pytest.mark.parametrize("kind", ["checkpoint", "hdf5"])
def test_dense_head_on_top_is_refused_by_name(kind: str, mini_spec: Spec, tmp_path: Path) -> None:
    variables = containers.records(mini_spec())
    head = {"kernel": np.ones((5, 2), np.float32), "bias": np.ones(2, np.float32)}
    if kind == "checkpoint":
        extra = {f"layer_with_weights-1/{k}": (f"dense/{k}", v) for k, v in head.items()}
        hub = renamed(variables, lambda number, record: f"layer_with_weights-0/{record.release}:0")
        source = containers.write_checkpoint(
            hub, tmp_path / "ckpt", root="", names="release", extra=extra
        )
    else:
        source = containers.write_hdf5(variables, tmp_path / "x.h5")
        with h5py.File(source, "a") as file:
            for name, value in head.items():
                file.create_dataset(f"dense/dense/{name}:0", data=value)
    text = refusal(source)
    assert "2 of" in text
    assert all(f"dense/{name}" in text for name in head)


def test_hdf5_of_a_compiled_model_is_read(mini_spec: Spec, tmp_path: Path) -> None:
    variables = containers.records(mini_spec("stream"))
    path = containers.write_hdf5(variables, tmp_path / "x.h5", whole_model=True)
    with h5py.File(path, "a") as file:
        for record in variables:
            for slot in ("m", "v"):
                name = f"optimizer_weights/Adam/{slot}/{record.later}:0"
                file.create_dataset(name, data=np.zeros_like(record.value))
        file.create_dataset("optimizer_weights/Adam/iteration:0", data=np.int64(9))
    assert same(convert(path).checkpoint.state_dict, containers.state_dict(variables))


@pytest.mark.parametrize("given", ["dir", "dir/", "dir/.", "dir/.index"])
def test_checkpoint_with_an_empty_prefix_is_read(
    given: str, mini_spec: Spec, tmp_path: Path
) -> None:
    variables = containers.records(mini_spec())
    containers.write_checkpoint(variables, tmp_path / "dir/ckpt")
    for file in sorted((tmp_path / "dir").iterdir()):
        file.rename(file.with_name(file.name.removeprefix("ckpt")))
    (tmp_path / "dir/checkpoint").write_text('model_checkpoint_path: "."\n')
    source = f"{tmp_path}/{given}"
    found = convert_source(source, verify=False).checkpoint.state_dict
    assert same(found, containers.state_dict(variables))


@pytest.mark.parametrize("conv_type", ["2plus1d", "3d_2plus1d"])
def test_width_of_the_squeeze_excitation_tells_base_from_stream(
    conv_type: str, mini_spec: Spec, tmp_path: Path
) -> None:
    spec = mini_spec(conv_type=conv_type)
    source = containers.write_checkpoint(
        containers.records(spec), tmp_path / "ckpt", names="release"
    )
    assert convert(source).checkpoint.spec == spec


def test_gate_of_what_the_authors_train_is_era_3s(mini_spec: Spec, tmp_path: Path) -> None:
    spec = mini_spec("stream", conv_type="3d_2plus1d")
    variables = containers.records(spec)
    source = containers.write_checkpoint(variables, tmp_path / "ckpt", names="release")
    conversion = convert(source)
    assert conversion.checkpoint.spec == spec.replace(gate="hard_sigmoid_relu6")
    assert conversion.era == 3


def test_averages_of_a_training_checkpoint_are_taken_when_asked_for(
    mini_spec: Spec, tmp_path: Path
) -> None:
    variables = containers.records(mini_spec())
    source = containers.write_checkpoint(
        variables, tmp_path / "ckpt", slots=("momentum", "average")
    )
    plain = containers.state_dict(variables)
    conversion = convert(source)
    assert same(conversion.checkpoint.state_dict, plain)
    assert conversion.averages.endswith("/.OPTIMIZER_SLOT/optimizer/average")
    conversion = convert(source, ema=True)
    assert same(conversion.checkpoint.state_dict, averaged(plain))
    assert not conversion.averages


def test_every_assumption_names_the_option_that_overrides_it(
    mini_spec: Spec, tmp_path: Path
) -> None:
    source = containers.write_checkpoint(containers.records(mini_spec()), tmp_path / "ckpt")
    given = {
        "--mode": ("causal", "stream"),
        "--gate": ("gate", "hard_sigmoid_relu6"),
        "--activation": ("activation", "relu"),
        "--classifier-activation": ("classifier_activation", "hard_swish"),
        "--padding": ("causal_padding", "legacy"),
        "--se-type": ("se_type", "2d"),
        "--norm-epsilon": ("norm_epsilon", "0.01"),
    }
    output = tmp_path / "x.pt"
    arguments = ["convert", "--hub-url", str(source), "-o", str(output)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assumed = set(load_checkpoint(output).provenance["assumed"])
    for option, (field, _) in given.items():
        # Without --mode stream there is no causal padding to assume.
        assert (f"({option} says otherwise)" in text) == (field in assumed), option
    assert assumed == {field for field, _ in given.values()} - {"causal_padding"} | {"strides"}
    options = [word for option, (_, value) in given.items() for word in (option, value)]
    result = CliRunner().invoke(main, arguments + options)
    assert result.exit_code == 0, result.output
    checkpoint = load_checkpoint(output)
    assert set(checkpoint.provenance["assumed"]) == {"strides"}
    for field, value in given.values():
        found = getattr(checkpoint.spec, field)
        assert found == {"stream": True, "0.01": 0.01}.get(value, value)


# What is not read ------------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 132750539\n"


class Whole(nn.Module):
    pass


def whole_module(path: Path) -> None:
    torch.save(Whole(), path)


def whole_module_of_old(path: Path) -> None:
    torch.save({"model": Whole()}, path, _use_new_zipfile_serialization=False)


def script(path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(path))


def program(path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), path)


def tensors(path: Path) -> None:
    save_file({"vision.proj.weight": torch.ones(2, 2)}, path)


def ours(path: Path) -> None:
    save_file({"stem.conv.weight": torch.ones(2, 2)}, path, {"spec": "{}"})


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": 1}))


def holding(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("movinet_best.pt", holding(POINTER), ["Git LFS pointer", "git lfs pull"]),
        (
            "best.pth",
            whole_module,
            ["pickled object of test_saved_files.Whole", "model.state_dict()"],
        ),
        ("best", whole_module_of_old, ["pickled object of test_saved_files.Whole"]),
        ("a.pt", script, ["TorchScript", "torch.save(model.state_dict(), PATH)"]),
        ("a.pt2", program, ["exported by PyTorch (.pt2)"]),
        ("a.pkl", pickled, ["Python pickle", "torch.save(model.state_dict(), PATH)"]),
        ("a.pth", pickled, ["Python pickle"]),
        ("a.safetensors", tensors, ["no MoViNet: none of its 1 variables", "vision.proj.weight"]),
        ("a.safetensors", ours, ["is converted already"]),
        ("a.safetensors", holding(b"anything"), ["cannot read it"]),
        ("a.bin", tensors, ["safetensors file; give it the suffix"]),
        ("a.onnx", holding(b"\x08\x07"), ["ONNX"]),
        ("frozen.pb", holding(b"\n\x01"), ["frozen graph of TF1"]),
        ("model.ckpt.meta", holding(b"\n\x01"), ["graph of a TF1 checkpoint"]),
        ("a.msgpack", holding(b"\x81\xa6params"), ["Flax or JAX"]),
        ("a.npz", holding(b"PK"), ["NumPy's arrays"]),
    ],
)
def test_file_that_is_not_read_is_called_what_it_is(
    name: str, write: Callable[[Path], None], expected: list[str], tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(MovinetPortError) as caught:
        convert(tmp_path / name)
    text = str(caught.value)
    assert "\n" not in text
    assert all(part in text for part in [name, *expected]), text


@pytest.mark.parametrize("pointers", ["index", "data", "graph"])
def test_pointers_in_the_place_of_a_models_files_are_told(pointers: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "variables").mkdir(parents=True)
    for file, kind in (
        ("saved_model.pb", "graph"),
        ("variables/variables.index", "index"),
        ("variables/variables.data-00000-of-00001", "data"),
    ):
        (model / file).write_bytes(POINTER if kind == pointers else b"something else")
    with pytest.raises(MovinetPortError, match="Git LFS pointer"):
        convert(model)


def test_folder_of_orbax_is_told(tmp_path: Path) -> None:
    (tmp_path / "_METADATA").write_bytes(b"{}")
    with pytest.raises(MovinetPortError, match="Flax or JAX"):
        convert(tmp_path)


def test_checkpoint_of_tensorflow_1_is_told(tmp_path: Path) -> None:
    write_bundle(tmp_path / "model", {"conv/kernel": np.ones((2, 2), np.float32)})
    assert "a checkpoint without an object graph (TensorFlow 1?)" in refusal(tmp_path / "model")


def test_safetensors_of_the_first_port_are_read(
    mini_spec: Spec, port: Callable[..., StateDict], tmp_path: Path
) -> None:
    save_file(port(mini_spec("stream")), tmp_path / "x.safetensors")
    conversion = convert(tmp_path / "x.safetensors")
    assert conversion.checkpoint.spec == mini_spec("stream")
    wanted = containers.state_dict(containers.records(mini_spec("stream")))
    assert same(conversion.checkpoint.state_dict, wanted)


def test_numbers_of_numpy_beside_the_weights_are_read(
    mini_spec: Spec, port: Callable[..., StateDict], tmp_path: Path
) -> None:
    content = {"net": port(mini_spec()), "acc": np.float64(91.5), "seen": np.int64(3)}
    conversion = convert(saved(content, tmp_path / "x.pth"))
    assert conversion.outside == ()


# Nothing is dropped -----------------------------------------------------------------------------

LAYERS = ("dense", "fusion", "lstm_1", "head2", "norm", "temporal_attention", "fc")


def plant_in_state_dict(variables: list[containers.Record], folder: Path, where: str) -> Path:
    path = containers.write_first_port(variables, folder / "x.pth")
    name = where.replace("/", ".") + ".weight"
    return saved({**torch.load(path), name: torch.ones(4, 3)}, path)


def plant_in_wrapper(variables: list[containers.Record], folder: Path, where: str) -> Path:
    path = containers.write_first_port(variables, folder / "x.pth")
    return saved({"model": torch.load(path), **{where: {"weight": torch.ones(4, 3)}}}, path)


def plant_in_safetensors(variables: list[containers.Record], folder: Path, where: str) -> Path:
    content = torch.load(containers.write_first_port(variables, folder / "x.pth"))
    name = where.replace("/", ".") + ".weight"
    save_file({**content, name: torch.ones(4, 3)}, folder / "x.safetensors")
    return folder / "x.safetensors"


def plant_in_checkpoint(variables: list[containers.Record], folder: Path, where: str) -> Path:
    extra = {f"{where}/kernel": (f"{where}/kernel", np.ones((4, 3), np.float32))}
    return containers.write_checkpoint(variables, folder / "ckpt", extra=extra)


def plant_in_hdf5(variables: list[containers.Record], folder: Path, where: str) -> Path:
    path = containers.write_hdf5(variables, folder / "x.h5")
    with h5py.File(path, "a") as file:
        file.create_dataset(f"{where}/kernel:0", data=np.ones((4, 3), np.float32))
    return path


def plant_in_keras(variables: list[containers.Record], folder: Path, where: str) -> Path:
    containers.write_weights_h5(variables, folder / "x.weights.h5")
    with h5py.File(folder / "x.weights.h5", "a") as file:
        file.create_dataset(f"{where}/vars/0", data=np.ones((4, 3), np.float32))
    return folder / "x.weights.h5"


@pytest.mark.parametrize(
    "plant",
    [
        plant_in_state_dict,
        plant_in_wrapper,
        plant_in_safetensors,
        plant_in_checkpoint,
        plant_in_hdf5,
        plant_in_keras,
    ],
)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_foreign_trained_layer_is_always_named(
    plant: Callable[[list[containers.Record], Path, str], Path],
    mini_spec: Spec,
    data: st.DataObject,
) -> None:
    variables = containers.records(mini_spec(data.draw(st.sampled_from(["base", "stream"]))))
    layer = data.draw(st.sampled_from(LAYERS))
    inside = {
        plant_in_state_dict: "first_port",
        plant_in_safetensors: "first_port",
        plant_in_checkpoint: "object_path",
        plant_in_hdf5: "later",
        plant_in_keras: "keras_3",
    }.get(plant)
    parents = [""]
    if inside is not None:
        name = getattr(data.draw(st.sampled_from(variables)), inside).replace(".", "/")
        parts = name.split("/")[:-2]
        parents.append("/".join([*parts[: data.draw(st.integers(0, len(parts)))], ""]))
    where = data.draw(st.sampled_from(parents)) + layer
    if plant is plant_in_checkpoint and where != layer:
        where = f"model/{where}"
    with tempfile.TemporaryDirectory() as folder:
        source = plant(variables, Path(folder), where)
        text = refusal(source)
    assert layer in text
    assert "none of a MoViNet" in text


# The page --------------------------------------------------------------------------------------

# First cell of the table in docs/converting.md -> what tests the row.
PAGE = {
    "first port, `state_dict()`, also `tf_like=False`": (
        test_shapes_tell_what_the_first_port_built,
        test_how_the_first_port_pads_is_assumed_or_said,
    ),
    "the same, last layer replaced": (test_new_last_layer_is_read,),
    "the same with several new layers": (test_two_new_last_layers_are_refused,),
    '`{"net": state_dict, ...}`, DataParallel, Lightning, `torch.compile`': (
        test_state_dict_is_found_in_what_is_around_it,
        test_numbers_of_numpy_beside_the_weights_are_read,
    ),
    "averaged weights beside the plain ones": (
        test_averaged_network_is_taken_when_asked_for,
        test_averages_of_some_weights_leave_the_others_as_they_are,
        test_averages_of_a_training_checkpoint_are_taken_when_asked_for,
    ),
    "two networks in one file": (test_one_of_two_networks_is_taken_by_its_root,),
    "layers replaced by `Identity`": (test_layers_replaced_by_identity_are_left_out,),
    "pruned": (test_pruned_weights_are_multiplied_out,),
    "PyTorch before 1.6, any suffix or none": (test_format_before_1_6_is_known_by_its_content,),
    "state dict in `.safetensors`": (test_safetensors_of_the_first_port_are_read,),
    "`hub.KerasLayer` in a `tf.keras` model; `model.export()`": (
        test_full_name_tells_where_the_object_path_does_not,
    ),
    "`Dense` on top": (test_dense_head_on_top_is_refused_by_name,),
    "`.h5` of a compiled, trained model": (test_hdf5_of_a_compiled_model_is_read,),
    '`save_weights("dir/")`': (test_checkpoint_with_an_empty_prefix_is_read,),
    "`2plus1d` or `3d_2plus1d` without causality": (
        test_width_of_the_squeeze_excitation_tells_base_from_stream,
    ),
    "`3d_2plus1d`, as the authors train": (test_gate_of_what_the_authors_train_is_era_3s,),
    "another activation, gate or padding": (
        test_every_assumption_names_the_option_that_overrides_it,
    ),
    "variables of something else besides": (
        test_foreign_tensor_is_named_unless_it_is_to_be_ignored,
        test_foreign_trained_layer_is_always_named,
    ),
    "Git LFS pointer, pickle, whole module, TorchScript, `.pt2`, TF1, frozen `.pb`, Flax, ONNX": (
        test_file_that_is_not_read_is_called_what_it_is,
        test_pointers_in_the_place_of_a_models_files_are_told,
        test_checkpoint_of_tensorflow_1_is_told,
        test_folder_of_orbax_is_told,
    ),
}


def test_every_row_of_the_page_is_tested_and_every_test_is_on_the_page() -> None:
    page = (Path(__file__).parents[1] / "docs/converting.md").read_text("utf-8")
    table = page.partition("## How people save")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \|", table, re.MULTILINE)[1:]
    assert rows == list(PAGE)
    tested = {function.__name__ for row in PAGE.values() for function in row}
    here = {name for name in globals() if name.startswith("test_")} - {
        "test_every_row_of_the_page_is_tested_and_every_test_is_on_the_page"
    }
    assert tested == here
