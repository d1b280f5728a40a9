"""No command writes over what it reads."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from movinet_port.command_line.cli import main
from movinet_port.errors import MovinetPortError
from movinet_port.files import check_outputs


@pytest.mark.parametrize("output", ["a.pt", "./a.pt", "soft.pt", "hard.pt"])
def test_output_that_is_an_input_is_refused_through_links_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.pt").touch()
    Path("soft.pt").symlink_to("a.pt")
    os.link("a.pt", "hard.pt")
    with pytest.raises(MovinetPortError, match=r"is the source itself; name another with -o$"):
        check_outputs({"-o": output}, [("the network", None), ("the source", "a.pt")])
    check_outputs({"-o": "b.pt", "--json": None}, [("the source", "a.pt"), ("a URL", "http://x/")])


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("ckpt", "ckpt.index"),
        ("ckpt", "ckpt.data-00000-of-00001"),
        ("ckpt.index", "ckpt"),
        ("model", "model/saved_model.pb"),
        ("model", "model/variables/variables.index"),
    ],
)
def test_parts_of_checkpoints_and_saved_models_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model/variables").mkdir(parents=True)
    for name in ("ckpt", "model/variables/variables"):
        Path(f"{name}.index").touch()
        Path(f"{name}.data-00000-of-00001").touch()
    Path("model/saved_model.pb").touch()
    with pytest.raises(MovinetPortError, match="the source itself"):
        check_outputs({"-o": output}, [("the source", source)])
    check_outputs({"-o": "model/new.pt"}, [("the source", source)])


def test_two_outputs_are_two_files(tmp_path: Path) -> None:
    outputs = {"--json": tmp_path / "x", "--report": tmp_path / "../" / tmp_path.name / "x"}
    with pytest.raises(MovinetPortError, match="--json and --report both name"):
        check_outputs(outputs, [])


COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "convert": lambda o: ["--hub-url", "a.mkv", "-o", o],
    "convert, labels": lambda o: ["--hub-url", "b.h5", "--labels", "a.mkv", "-o", o],
    "export": lambda o: ["--weights", "a.mkv", "--to", "onnx", "-o", o],
    "compile": lambda o: ["--weights", "a.mkv", "--size", "32", "-o", o],
    "parity, report": lambda o: ["--hub-url", "b.h5", "--weights", "a.mkv", "--report", o],
    "parity, json": lambda o: ["--hub-url", "a.mkv", "--json", o],
    "parity, junit": lambda o: ["--hub-url", "a.mkv", "--junit", o],
    "parity, reference": lambda o: ["--hub-url", "a.mkv", "--save-reference", o],
    "predict, plot": lambda o: ["b.mp4", "--weights", "a.mkv", "--plot", o],
    "predict, annotate": lambda o: ["a.mkv", "--weights", "b.h5", "--annotate", o],
    "predict, labels": lambda o: ["b.mp4", "--weights", "b.h5", "--labels", "a.mkv", "--plot", o],
}


@pytest.mark.parametrize("link", [False, True], ids=["itself", "link"])
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_writes_over_its_input(
    name: str,
    link: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("a.mkv", "b.h5", "b.mp4"):
        Path(file).write_text(file)
    Path("link.mkv").symlink_to("a.mkv")
    with pytest.raises(SystemExit) as ended:
        main([name.partition(",")[0], *COMMANDS[name]("link.mkv" if link else "a.mkv")])
    assert ended.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "itself; name another with -" in line
    assert Path("a.mkv").read_text() == "a.mkv"
    assert Path("link.mkv").is_symlink()


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_fine_tuning_does_not_write_over_the_model_it_starts_from(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    (tmp_path / "run" / name).write_text("kept")
    with pytest.raises(SystemExit) as ended:
        main(["finetune", "videos", "--weights", f"run/{name}", "-o", "run"])
    assert ended.value.code == 2
    assert f"run/{name} is the model to start from itself" in capfd.readouterr().err
    assert (tmp_path / "run" / name).read_text() == "kept"
