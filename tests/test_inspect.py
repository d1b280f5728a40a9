"""What ``movinet-port inspect`` says of one source, and of two."""

from __future__ import annotations

import dataclasses
import json
import tarfile
from pathlib import Path

import damage
import pytest
from click.testing import CliRunner
from test_containers import keys_of

from converters import convert_source
from converters.containers.saved_model import read_saved_model
from movinet_port import save
from movinet_port.checkpoint import load_checkpoint
from movinet_port.command_line.cli import main
from movinet_port.command_line.written import read_written
from movinet_port.errors import MovinetPortError
from movinet_port.inputs import InputFormat

DATA = Path(__file__).parent / "data"
SAMPLE = Path(__file__).resolve().parent.parent / "weights/samples/movinet_mini_stream.tar.gz"


def inspect(*sources: Path) -> str:
    result = CliRunner().invoke(main, ["inspect", *map(str, sources)])
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder


@pytest.fixture
def era_2(tmp_path: Path) -> Path:
    return unpack(DATA / "era2_mini_stream_posenc.tar.gz", tmp_path / "era_2")


@pytest.fixture
def era_3(tmp_path: Path, era_2: Path) -> Path:
    """The era-3 export of the same network, given the era-2 export's weights."""
    folder = unpack(SAMPLE, tmp_path / "era_3")
    source = damage.read_variables(era_2 / "variables/variables")
    target = damage.read_variables(folder / "variables/variables")
    keys = keys_of(source)
    for path, key in keys_of(target).items():
        target.tensors[key] = source.tensors[keys[path]]
    target.write(folder / "variables/variables")
    return folder


def test_equal_weights_with_other_gates_are_said_in_one_line(era_2: Path, era_3: Path) -> None:
    lines = inspect(era_2, era_3).splitlines()
    (line,) = [line for line in lines if line.startswith("difference")]
    assert "the weights are equal and the gates differ (tensorflow/models#13559)" in line
    assert "            gate: hard_sigmoid_keras and hard_sigmoid_relu6" in lines


def test_equal_sources_are_called_equal(era_2: Path) -> None:
    assert "the architectures and the weights are equal" in inspect(era_2, era_2)


def test_weight_that_differs_is_named(tmp_path: Path, era_2: Path) -> None:
    other = unpack(DATA / "era2_mini_stream_posenc.tar.gz", tmp_path / "other")
    contents = read_saved_model(other)
    name = next(
        variable.full_name
        for variable in contents.variables
        if variable.path.endswith("_mobile_bottleneck/_rezero/scale")
    )
    key = damage.read_variables(other / "variables/variables").key(name)

    def halve(variables: damage.Variables) -> None:
        variables.tensors[key] = variables.tensors[key] / 2

    damage.rewrite(other, halve)
    said = inspect(era_2, other)
    assert "the architectures are equal and 1 of 304 tensors differ" in said
    assert "block0_layer0.rezero.scale: 1 of 1 values, by up to 0." in said


def test_another_network_differs_in_architecture_and_weights(era_2: Path) -> None:
    said = inspect(DATA / "era1_mini_stream.tar.gz", era_2)
    assert "the architectures differ in" in said
    assert "causal_padding: legacy and same" in said
    assert "only in the second" in said


def test_every_deviation_comes_with_its_evidence(era_2: Path) -> None:
    lines = inspect(era_2).splitlines()
    deviations = [
        number
        for number, line in enumerate(lines)
        if line.startswith(("deviation", "            ")) and not line.startswith(" " * 16)
    ]
    assert len(deviations) >= 8
    for number in deviations:
        assert lines[number + 1].startswith(" " * 16 + "read off "), lines[number]
    assert "se_expand" in next(
        lines[n + 1] for n in deviations if "clip(0.2 x + 0.5, 0, 1)" in lines[n]
    )


def test_what_is_no_part_of_the_network_is_listed(era_2: Path) -> None:
    assert "left out    optimizer/_iterations; optimizer/_learning_rate" in inspect(era_2)


def test_three_sources_are_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["inspect", "a", "b", "c"])
    assert result.exit_code == 2
    assert "one or two sources, found 3" in result.stderr


# Files of our own


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one network as every file that movinet-port writes but compiled ones."""
    folder = tmp_path_factory.mktemp("made")
    checkpoint = convert_source(DATA / "era1_mini_base.tar.gz", verify=False).checkpoint
    labels = tuple(f"class {n}" for n in range(checkpoint.spec.num_classes))
    made_for = InputFormat(size=64, resize=72, frames_per_second=5.0, frames=8)
    checkpoint = dataclasses.replace(checkpoint, labels=labels, input=made_for)
    for name in ("a.pt", "a.safetensors", "best.pt"):
        save(checkpoint, folder / name)
    return folder


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "best.pt"])
def test_checkpoint_of_ours_says_what_it_is(name: str, made: Path) -> None:
    text = " ".join(inspect(made / name).split())
    for part in (
        f"{name}: {'safetensors ' * name.endswith('safetensors')}checkpoint",
        "network custom base",
        "labels class 0; class 1; class 2; and ",
        "input clips of 8 frames of 64 x 64, 5 frames per second",
        "era1_mini_base.tar.gz",
        "weights_sha256: ",
    ):
        assert part in text


def test_two_checkpoints_of_ours_are_compared(made: Path) -> None:
    said = inspect(made / "a.pt", made / "a.safetensors")
    assert "the architectures and the weights are equal" in said
    assert "the architectures and the weights are equal" in inspect(
        made / "a.pt", DATA / "era1_mini_base.tar.gz"
    )


def test_onnx_file_of_ours_says_what_it_is(made: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    checkpoint = load_checkpoint(made / "a.pt")
    facts = {
        "spec": checkpoint.spec.to_dict(),
        "labels": list(checkpoint.labels or ()),
        "provenance": dict(checkpoint.provenance),
    }
    graph = onnx.helper.make_graph([], "movinet", [], [])
    model = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    onnx.save(model, tmp_path / "a.onnx")
    text = inspect(tmp_path / "a.onnx")
    assert "ONNX file" in text
    assert "custom base" in text
    assert "class 0; class 1; class 2" in text
    result = CliRunner().invoke(main, ["inspect", *[str(tmp_path / "a.onnx")] * 2])
    assert result.exit_code == 2
    assert "gives no weights to compare" in result.stderr
    (tmp_path / "b.onnx").write_bytes(b"\x08\x07anything")
    with pytest.raises(MovinetPortError, match=r"b\.onnx"):
        read_written(tmp_path / "b.onnx")


def test_damaged_package_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(b"anything")
    with pytest.raises(MovinetPortError, match="no package of movinet-port"):
        read_written(tmp_path / "a.pt2")
