"""The command line: exit codes, one line for every error, files that are whole or not there."""

from __future__ import annotations

import dataclasses
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import damage
import numpy as np
import pytest
import torch
from hub_server import HubServer

import converters
import movinet_port
import weights
from converters.containers import CONTAINERS
from movinet_port.agreement import Agreement
from movinet_port.command_line.cli import main

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).parents[1]
BASE = DATA / "era1_mini_base.tar.gz"
SHARED = ROOT.parent / "shared/fixtures"


class Outcome(NamedTuple):
    code: object
    out: str
    err: str


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in a folder that is empty before and holds no temporary file after."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    yield
    assert list(temporary.glob("movinet-port-*")) == []
    assert [path for path in tmp_path.rglob(".*") if path.is_file()] == []


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process; output that goes around Python counts too."""

    def run(*arguments: str | Path) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments], prog_name="movinet-port")
        return Outcome(ended.value.code or 0, *capfd.readouterr())

    return run


@pytest.fixture
def convert(run: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Convert a source without the comparison."""
    return lambda source, *options: run("convert", "--no-verify", "--hub-url", source, *options)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a SavedModel, to be damaged."""
    return damage.unpack(BASE, tmp_path / "model")


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer().running() as server:
        yield server


def assert_refused(outcome: Outcome, *parts: str) -> None:
    """Exit code 2 and one line that says all of this."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert outcome.err.endswith("\n")
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in line
    for part in parts:
        assert part in line


def written() -> list[str]:
    """Names of what is in the current folder."""
    return sorted(path.name for path in Path.cwd().iterdir())


# What it writes


def test_output_is_what_python_converts(convert: Callable[..., Outcome]) -> None:
    outcome = convert(BASE, "-o", "mini.pt")
    assert (outcome.code, outcome.err) == (0, "")
    wanted = converters.convert(BASE, verify=False)
    found = movinet_port.load_checkpoint("mini.pt")
    assert found.spec == wanted.spec
    assert {**found.provenance, "date": ""} == {**wanted.provenance, "date": ""}
    assert found.state_dict.keys() == wanted.state_dict.keys()
    assert all(torch.equal(found.state_dict[n], t) for n, t in wanted.state_dict.items())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([], "movinet_custom_base.pt"),
        (["--format", "pt"], "movinet_custom_base.pt"),
        (["--format", "safetensors"], "movinet_custom_base.safetensors"),
        (["-o", "a b.safetensors"], "a b.safetensors"),
        (["-o", "ünï.bin", "--format", "pt"], "ünï.bin"),
        (["-o", "x.safetensors", "--format", "safetensors"], "x.safetensors"),
        (["--model", "a0", "--mode", "base"], None),
        (["--mode", "base", "--gate", "sigmoid"], "movinet_custom_base.pt"),
    ],
)
def test_output_is_named_and_formatted_as_asked(
    options: list[str], name: str | None, convert: Callable[..., Outcome]
) -> None:
    outcome = convert(BASE, *options)
    if name is None:
        assert_refused(outcome, "expected a0")
        assert written() == []
        return
    assert (outcome.code, outcome.err) == (0, "")
    assert written() == [name]
    assert re.search(rf"^written +{re.escape(name)}$", outcome.out, re.MULTILINE)
    start = Path(name).read_bytes()[:9]
    assert (start[8:] == b"{") is name.endswith(".safetensors")
    video = torch.from_numpy(np.load(DATA / "era1_mini_base.expected.npz")["video"])
    with torch.inference_mode():
        assert movinet_port.load(name)(video.permute(0, 4, 1, 2, 3)).shape == (2, 5)


def test_output_replaces_an_older_file(convert: Callable[..., Outcome]) -> None:
    Path("mini.pt").write_bytes(b"older")
    assert convert(BASE, "-o", "mini.pt").code == 0
    assert movinet_port.load("mini.pt").spec.num_classes == 5
    assert written() == ["mini.pt"]


def test_output_goes_where_a_link_points(convert: Callable[..., Outcome]) -> None:
    Path("folder").mkdir()
    Path("mini.pt").symlink_to("folder/real.pt")
    assert convert(BASE, "-o", "mini.pt").code == 0
    assert Path("mini.pt").is_symlink()
    assert movinet_port.load("folder/real.pt").spec.num_classes == 5


def test_output_has_the_usual_permissions(convert: Callable[..., Outcome]) -> None:
    Path("usual").touch()
    convert(BASE, "-o", "mini.pt")
    assert Path("mini.pt").stat().st_mode == Path("usual").stat().st_mode


def test_summary_says_what_was_found(convert: Callable[..., Outcome]) -> None:
    outcome = convert(DATA / "era2_mini_stream_posenc.tar.gz")
    rows = [line.split(maxsplit=1) for line in outcome.out.splitlines()]
    for label, part in [
        ("source", "era2_mini_stream_posenc.tar.gz"),
        ("network", "custom stream, era 2"),
        ("classes", "5"),
        ("written", "movinet_custom_stream.pt"),
        ("compared", "--no-verify"),
    ]:
        assert any(row[0] == label and part in row[1] for row in rows), label
    for deviation in ("(2+1)D", "clip(0.2 x + 0.5, 0, 1)", "positional encoding", "hard_swish"):
        assert deviation in outcome.out
    assert "\x1b" not in outcome.out


# Where sources come from


def test_handle_is_downloaded_through_the_redirect_and_cached(
    hub: HubServer, convert: Callable[..., Outcome]
) -> None:
    handle = hub.publish("/tensorflow/movinet/mini/base/1", BASE.read_bytes())
    outcome = convert(handle, "-o", "first.pt")
    assert (outcome.code, outcome.err) == (0, "")
    assert hub.requests == [
        "/tensorflow/movinet/mini/base/1?tf-hub-format=compressed",
        "/storage/tensorflow/movinet/mini/base/1.tar.gz",
    ]
    assert convert(handle, "-o", "second.pt").code == 0
    assert len(hub.requests) == 2
    first, second = (movinet_port.load_checkpoint(name) for name in ("first.pt", "second.pt"))
    assert first.provenance["source"] == second.provenance["source"] == handle
    assert first.provenance["sha256"] == converters.convert(BASE, verify=False).provenance["sha256"]


@pytest.mark.parametrize(("model", "mode", "version"), [("a0", "stream", 3), ("a5", "base", 3)])
def test_without_a_source_the_newest_handle_is_taken(
    model: str,
    mode: str,
    version: int,
    run: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    folder = damage.unpack(BASE, tmp_path / "model")

    def download(handle: Any, progress: Any) -> Path:
        asked.append(handle.name)
        return folder

    monkeypatch.setattr(sys.modules["converters.fetch"], "download", download)
    outcome = run("convert", "--model", model, "--mode", mode, "--no-verify")
    handle = f"https://tfhub.dev/tensorflow/movinet/{model}/{mode}/kinetics-600/classification"
    assert asked == [f"{handle}/{version}"]
    # What came is not what was asked for.
    assert_refused(outcome, f"{handle}/{version}", f"expected {model}")
    assert written() == []


def test_published_network_is_fetched_by_its_name(
    hub: HubServer, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = SHARED / "era2_a0_stream.tar.gz"
    if not archive.exists():
        pytest.skip(f"{archive} is not on this machine")
    handle = hub.publish("/tensorflow/movinet/a0/stream/3", archive.read_bytes())
    monkeypatch.setattr(weights, "newest_handle", lambda model, mode: handle)
    outcome = run("convert", "--model", "a0", "--mode", "stream", "--no-verify")
    assert (outcome.code, outcome.err) == (0, "")
    assert written() == ["movinet_a0_stream.pt"]
    assert movinet_port.load("movinet_a0_stream.pt").spec.name == "a0"


@pytest.mark.parametrize("arguments", [[], ["--model", "a0"], ["--mode", "base"]])
def test_without_a_source_model_and_mode_are_needed(
    arguments: list[str], run: Callable[..., Outcome]
) -> None:
    assert_refused(run("convert", *arguments), "--hub-url", "--model and --mode")


def test_network_that_is_not_published_says_so(run: Callable[..., Outcome]) -> None:
    assert_refused(run("convert", "--model", "t0", "--mode", "base"), "t0", "--hub-url")


def test_empty_source_is_not_the_published_one(run: Callable[..., Outcome]) -> None:
    # As an unset variable of the shell leaves it.
    outcome = run("convert", "--model", "a0", "--mode", "base", "--hub-url", "")
    assert_refused(outcome, "cannot read ''")


# Sources that cannot be used


def _keras_model(folder: Path) -> None:
    from converters.tensorflow import import_tensorflow

    tf = import_tensorflow()
    image = tf.keras.layers.Input((8, 8, 3))
    x = tf.keras.layers.Conv2D(4, 3, activation="relu")(image)
    x = tf.keras.layers.GlobalAveragePooling2D()(x)
    network = tf.keras.Model(image, tf.keras.layers.Dense(2)(x))
    tf.saved_model.save(network, str(folder))


def _module(folder: Path) -> None:
    from converters.tensorflow import import_tensorflow

    tf = import_tensorflow()
    module = tf.Module()
    module.weight = tf.Variable(1.0)
    tf.saved_model.save(module, str(folder))


def _empty_module(folder: Path) -> None:
    from converters.tensorflow import import_tensorflow

    tf = import_tensorflow()
    tf.saved_model.save(tf.Module(), str(folder))


@pytest.mark.parametrize(
    ("export", "parts"),
    [
        (lambda folder: folder.mkdir(), ["no SavedModel", "nothing"]),
        (_keras_model, ["no MoViNet", "conv2d/kernel"]),
        (_module, ["no MoViNet", "weight"]),
        (_empty_module, ["no MoViNet"]),
    ],
    ids=["empty_folder", "keras", "module", "no_variables"],
)
def test_folder_that_holds_no_movinet_is_refused(
    export: Callable[[Path], None],
    parts: list[str],
    tmp_path: Path,
    convert: Callable[..., Outcome],
) -> None:
    folder = tmp_path / "other"
    export(folder)
    assert_refused(convert(folder, "-o", "x.pt"), str(folder), *parts)
    assert written() == []


def _without_signatures(meta_graph: Any) -> None:
    meta_graph.signature_def.clear()


def test_saved_model_without_signatures_is_refused(
    model: Path, convert: Callable[..., Outcome]
) -> None:
    damage.edit_graph(model, _without_signatures)
    assert_refused(convert(model), "signature", "serving_default", "none")


def _cut(name: str, keep: float) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])

    return cut


def _nan(folder: Path) -> None:
    damage.rewrite(folder, lambda v: v.change("stem/stem/bn/beta", lambda a: a * np.nan))


@pytest.mark.parametrize(
    ("harm", "parts"),
    [
        (_cut(damage.DATA, 0.5), ["variable"]),
        (_cut(damage.DATA, 0.0), []),
        (_cut(damage.INDEX, 0.5), ["index"]),
        (_cut(damage.INDEX, 0.0), ["index"]),
        (_cut("saved_model.pb", 0.5), ["saved_model.pb"]),
        (_cut("saved_model.pb", 0.99), ["saved_model.pb"]),
        (_cut("saved_model.pb", 0.0), ["saved_model.pb"]),
        (lambda folder: (folder / damage.DATA).unlink(), ["variables.data-00000-of-00001"]),
        (lambda folder: (folder / damage.INDEX).unlink(), ["variables.index"]),
        (lambda folder: shutil.rmtree(folder / "variables"), ["variables"]),
        (
            lambda folder: damage.rewrite(folder, lambda v: v.drop("b1/l0/scale")),
            ["block1_layer0.rezero.scale"],
        ),
        (_nan, ["stem/stem/bn/beta", "NaN"]),
    ],
    ids=[
        "data_cut",
        "data_empty",
        "index_cut",
        "index_empty",
        "graph_cut",
        "graph_almost_whole",
        "graph_empty",
        "no_data",
        "no_index",
        "no_variables",
        "missing_variable",
        "nan",
    ],
)
def test_damaged_source_leaves_the_older_output(
    harm: Callable[[Path], object],
    parts: list[str],
    model: Path,
    convert: Callable[..., Outcome],
) -> None:
    harm(model)
    Path("mini.pt").write_bytes(b"older")
    outcome = convert(model, "-o", "mini.pt")
    assert_refused(outcome, str(model), *parts)
    assert outcome.err.count(str(model)) <= 2
    assert written() == ["mini.pt"]
    assert Path("mini.pt").read_bytes() == b"older"


def test_damage_in_an_archive_is_not_reported_at_its_temporary_place(
    model: Path, tmp_path: Path, convert: Callable[..., Outcome]
) -> None:
    _cut("saved_model.pb", 0.5)(model)
    outcome = convert(damage.pack(model, tmp_path / "cut.tar.gz"))
    assert_refused(outcome, str(tmp_path / "cut.tar.gz"), "saved_model.pb")
    assert "temporary" not in outcome.err


def test_archive_that_climbs_out_is_refused(
    tmp_path: Path, convert: Callable[..., Outcome]
) -> None:
    import tarfile

    path = tmp_path / "climbs.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(BASE, arcname="../outside.pt")
    assert_refused(convert(path), str(path), "not safe", "../outside.pt")
    assert list(tmp_path.rglob("outside*")) == []


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--model", "a2"], ["expected a2", "other widths"]),
        (["--mode", "stream"], ["is a base network", "expected stream"]),
        (["--gate", "hard_sigmoid_keras"], ["gate", "hard_sigmoid_keras", "'sigmoid'"]),
        (["--padding", "legacy"], ["causal_padding", "legacy", "'same'"]),
        (["--activation", "hard_swish"], ["activation", "hard_swish", "'swish'"]),
        (["--format", "safetensors", "-o", "x.pt"], ["--format", "x.pt", ".safetensors"]),
        (["--format", "pt", "-o", "x.safetensors"], ["--format", "x.safetensors"]),
        (["--labels", "missing.txt"], ["missing.txt", "does not exist"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_option_that_contradicts_the_source_is_refused(
    options: list[str], parts: list[str], convert: Callable[..., Outcome]
) -> None:
    assert_refused(convert(BASE, *options), *parts)
    assert written() == []


# Outputs that cannot be written


@pytest.fixture
def never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a source is opened: an output is looked at before hours of work."""

    def open_source(*arguments: object) -> None:
        raise AssertionError("the source was opened")

    monkeypatch.setattr(sys.modules["converters.convert"], "open_source", open_source)


@pytest.mark.usefixtures("never_read")
@pytest.mark.parametrize(
    ("output", "parts"),
    [
        ("folder", ["folder", "directory"]),
        ("new/", ["new/", "folder"]),
        ("missing/x.pt", ["missing/x.pt", "No such file or directory"]),
        ("file/x.pt", ["file/x.pt", "Not a directory"]),
        ("", ["folder"]),
        ("n" * 300 + ".pt", ["File name too long"]),
        ("/proc/x.pt", ["/proc/x.pt"]),
        ("pipe", ["pipe", "no regular file"]),
        ("/dev/null", ["/dev/null", "no regular file"]),
    ],
    ids=["folder", "new_folder", "missing", "file", "empty", "long", "proc", "pipe", "device"],
)
def test_output_that_cannot_be_written_is_refused_before_the_work(
    output: str, parts: list[str], convert: Callable[..., Outcome]
) -> None:
    Path("folder").mkdir()
    Path("file").touch()
    os.mkfifo("pipe")
    assert_refused(convert(BASE, "-o", output), *parts)
    assert written() == ["file", "folder", "pipe"]


@pytest.mark.usefixtures("never_read")
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_output_in_a_read_only_folder_is_refused_before_the_work(
    convert: Callable[..., Outcome],
) -> None:
    Path("closed").mkdir(mode=0o500)
    assert_refused(convert(BASE, "-o", "closed/x.pt"), "closed/x.pt", "Permission denied")


def test_default_output_that_is_a_folder_is_refused(convert: Callable[..., Outcome]) -> None:
    Path("movinet_custom_base.pt").mkdir()
    assert_refused(convert(BASE), "movinet_custom_base.pt", "it is a folder")


@pytest.mark.usefixtures("never_read")
@pytest.mark.parametrize("output", ["mini.tar.gz", "link.pt"])
def test_output_that_is_the_source_is_refused(output: str, convert: Callable[..., Outcome]) -> None:
    shutil.copy(BASE, "mini.tar.gz")
    Path("link.pt").symlink_to("mini.tar.gz")
    assert_refused(convert("mini.tar.gz", "-o", output), output, "the source itself")
    assert Path("mini.tar.gz").read_bytes() == BASE.read_bytes()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_full_disk_leaves_the_older_output(
    suffix: str, model: Path, convert: Callable[..., Outcome]
) -> None:
    Path(f"mini{suffix}").write_bytes(b"older")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal that comes with it: writes fail, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        outcome = convert(model, "-o", f"mini{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_refused(outcome, f"cannot write mini{suffix}", "has room")
    assert written() == [f"mini{suffix}"]
    assert Path(f"mini{suffix}").read_bytes() == b"older"


def _save_half_and(then: Callable[[], object]) -> Callable[..., None]:
    def save(content: object, path: Path) -> None:
        Path(path).write_bytes(b"half of it")
        then()
        raise AssertionError("went on")

    return save


@pytest.mark.parametrize(
    ("number", "code", "err"),
    [(signal.SIGTERM, 143, ""), (signal.SIGINT, 130, "error: interrupted\n")],
)
def test_signal_while_writing_leaves_the_older_output(
    number: signal.Signals,
    code: int,
    err: str,
    model: Path,
    convert: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("mini.pt").write_bytes(b"older")
    monkeypatch.setattr(torch, "save", _save_half_and(lambda: signal.raise_signal(number)))
    before = signal.getsignal(signal.SIGTERM)
    # A shell starts its background jobs with SIGINT ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        outcome = convert(model, "-o", "mini.pt")
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert outcome == (code, "", err)
    assert written() == ["mini.pt"]
    assert Path("mini.pt").read_bytes() == b"older"
    assert signal.getsignal(signal.SIGTERM) == before


def environment(**changes: str) -> dict[str, str]:
    """What a user's shell has, TensorFlow's own settings left out."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "TFHUB_"))}
    return {**kept, "PYTHONPATH": str(ROOT), **changes}


def test_killed_while_writing_leaves_the_older_output(model: Path) -> None:
    Path("mini.pt").write_bytes(b"older")
    script = (
        "import os, signal, sys, torch\n"
        "def save(content, path):\n"
        "    open(path, 'wb').write(b'half of it')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "torch.save = save\n"
        "from movinet_port.command_line.cli import main\n"
        "main()\n"
    )
    arguments = ["convert", "--no-verify", "--hub-url", str(model), "-o", "mini.pt"]
    ended = subprocess.run([sys.executable, "-c", script, *arguments], env=environment())
    assert ended.returncode == -signal.SIGKILL
    assert Path("mini.pt").read_bytes() == b"older"
    (leftover,) = [path for path in Path.cwd().iterdir() if path.name != "mini.pt"]
    assert leftover.name.startswith(".mini.pt.")
    leftover.unlink()


# The comparison of both sides


def test_network_that_differs_from_its_source_is_exit_code_1(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = Agreement(((2, 2, 61, 83),), difference=1e-3, magnitude=1.0)
    row = dataclasses.replace(CONTAINERS["saved_model"], verify=lambda *arguments: bad)
    monkeypatch.setitem(CONTAINERS, "saved_model", row)
    Path("mini.pt").write_bytes(b"older")
    outcome = run("convert", "--hub-url", str(BASE), "-o", "mini.pt")
    assert (outcome.code, outcome.out) == (1, "")
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"error: {BASE}")
    assert "1.00e-03" in line
    assert "nothing was written" in line
    assert Path("mini.pt").read_bytes() == b"older"
    assert run("convert", "--hub-url", str(BASE), "-o", "mini.pt", "--no-verify").code == 0


def test_pipe_gets_the_summary_and_not_a_word_of_tensorflows(
    hub: HubServer, tmp_path: Path
) -> None:
    handle = hub.publish("/tensorflow/movinet/mini/base/1", BASE.read_bytes())
    command = [sys.executable, "-m", "movinet_port.command_line", "convert", "--hub-url", handle]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(TFHUB_CACHE_DIR=str(tmp_path / "cache")),
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    labels = [line.split()[0] for line in ended.stdout.splitlines()]
    assert labels[:5] == ["source", "network", "classes", "parameters", "left"]
    assert labels[-3:] == ["written", "compared", "difference"]
    assert "the graph in float64 against PyTorch" in ended.stdout
    movinet_port.load("movinet_custom_base.pt")


def test_verbose_lets_tensorflow_speak() -> None:
    command = [sys.executable, "-m", "movinet_port.command_line", "convert", "-v"]
    ended = subprocess.run(
        [*command, "--engine", "tensorflow", "--hub-url", str(BASE)],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert ended.returncode == 0
    assert "tensorflow" in ended.stderr.lower()


# The command line itself


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\nb", os.fsdecode(b"a\xffb"), "[red]a b"])
def test_any_name_of_a_file_is_one_printable_line(
    name: str, convert: Callable[..., Outcome]
) -> None:
    outcome = convert(f"missing {name}")
    assert_refused(outcome, "missing ")
    assert outcome.err.rstrip("\n").isprintable()
    outcome = convert(BASE, "-o", f"{name}.pt")
    assert (outcome.code, outcome.err) == (0, "")
    assert written() == [f"{name}.pt"]
    assert all(line.isprintable() for line in outcome.out.splitlines())
    assert len([line for line in outcome.out.splitlines() if line.startswith("written")]) == 1


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["convrt"], ["convrt", "did you mean 'convert'?", "movinet-port --help"]),
        (["lst"], ["lst", "did you mean 'list'?"]),
        (["something"], ["something"]),
        (["--vrsion"], ["--vrsion"]),
        (["convert", "--modle", "a0"], ["--modle", "--model", "movinet-port convert --help"]),
        (["convert", "--model", "a9"], ["'a9'", "'a0'", "'t0'"]),
        (["convert", "--mode", "both"], ["'both'", "'base'", "'stream'"]),
        (["convert", "--gate", "tanh"], ["'tanh'", "'hard_sigmoid_relu6'"]),
        (["convert", "--hub-url"], ["--hub-url", "argument"]),
        (["convert", "a0"], ["a0"]),
        (["list", "a0"], ["a0"]),
        (["inspect"], ["SOURCE"]),
    ],
    ids=lambda value: "_".join(value).replace("-", "") if isinstance(value[0], str) else "",
)
def test_mistake_in_the_command_line_is_one_line(
    arguments: list[str], parts: list[str], run: Callable[..., Outcome]
) -> None:
    assert_refused(run(*arguments), *parts)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["convert", "-h"], ["--version"]])
def test_help_and_version_go_to_standard_output(
    arguments: list[str], run: Callable[..., Outcome]
) -> None:
    outcome = run(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    assert "movinet-port" in outcome.out


def test_no_command_shows_the_help(run: Callable[..., Outcome]) -> None:
    outcome = run()
    assert (outcome.code, outcome.out) == (2, "")
    assert "convert" in outcome.err


def test_list_in_a_pipe_cuts_nothing(run: Callable[..., Outcome]) -> None:
    outcome = run("list")
    assert (outcome.code, outcome.err) == (0, "")
    for entry in weights.models():
        assert weights.newest_handle(entry.name, entry.mode) in outcome.out


@pytest.mark.parametrize(
    ("redirection", "code", "err"),
    [
        (">/dev/full", 2, "error: standard output: No space left on device\n"),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
    ],
)
def test_standard_output_may_be_full_or_closed(redirection: str, code: int, err: str) -> None:
    command = f"{sys.executable} -m movinet_port.command_line list {redirection}"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment())
    assert (ended.returncode, ended.stderr) == (code, err)


def test_loading_a_converted_file_imports_no_tensorflow(convert: Callable[..., Outcome]) -> None:
    convert(BASE, "-o", "mini.pt")
    script = "import movinet_port; movinet_port.load('mini.pt')"
    command = [sys.executable, "-X", "importtime", "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert ended.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "torch" in imported
    assert not {name for name in imported if name.partition(".")[0] in ("tensorflow", "keras")}
    assert not {name for name in imported if name.partition(".")[0] == "converters"}
