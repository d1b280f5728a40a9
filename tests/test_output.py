"""What names from outside may do to a terminal: nothing."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from movinet_port.command_line.cli import main
from movinet_port.command_line.output import say, say_rows
from movinet_port.progress import show_bar, show_progress
from parity import Diagnosis, LayerResult, Report
from parity.reports.text import junit, print_report

# Markup of rich, the title of the window, a cleared screen, and what begins both in 8 bits.
HOSTILE = "a[/red][bold]\x1b]0;owned\x07\x1b[2J\x9b2J.pt"
SHOWN = r"a[/red][bold]\x1b]0;owned\x07\x1b[2J\x9b2J.pt"


def assert_harmless(text: str) -> None:
    for control in ("\x1b]", "\x07", "\x1b[2J\x9b", "\x9b"):
        assert control not in text
    assert SHOWN in text.replace("\n", "")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if standard error were a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.usefixtures("terminal")
def test_progress_shows_a_name_and_obeys_nothing_in_it(capfd: pytest.CaptureFixture[str]) -> None:
    with show_progress() as progress:
        progress(f"reading {HOSTILE}")
        time.sleep(0.3)
    assert_harmless(capfd.readouterr().err)


@pytest.mark.usefixtures("terminal")
def test_bar_shows_a_name_and_obeys_nothing_in_it(capfd: pytest.CaptureFixture[str]) -> None:
    with show_bar(2) as bar:
        bar.begin(HOSTILE)
        time.sleep(0.3)
    assert_harmless(capfd.readouterr().err)


COMMANDS = {
    "convert": ["convert", "--hub-url", HOSTILE],
    "inspect": ["inspect", HOSTILE],
    "export": ["export", "--weights", HOSTILE, "--to", "onnx", "-o", "x.onnx"],
    "compile": ["compile", "--weights", HOSTILE, "--size", "32", "-o", "x.pt2"],
    "parity": ["parity", "--hub-url", HOSTILE],
    "predict": ["predict", "video.mp4", "--weights", HOSTILE],
    "finetune": ["finetune", "videos", "--weights", HOSTILE, "-o", "run"],
}


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("name", COMMANDS)
def test_error_names_a_file_and_obeys_nothing_in_its_name(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(HOSTILE).parent.mkdir()
    Path(HOSTILE).write_bytes(b"PK\x03\x04")
    with pytest.raises(SystemExit) as ended:
        main(COMMANDS[name])
    assert ended.value.code == 2
    err = capfd.readouterr().err
    assert "error: " in err
    assert_harmless(err)


def test_rows_are_harmless_on_a_terminal_and_in_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say(f"written {HOSTILE}")
    say_rows([("written", HOSTILE)])
    for line in capsys.readouterr().out.splitlines():
        assert_harmless(line)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    say_rows([("written", HOSTILE)])
    assert_harmless(capsys.readouterr().out)


@pytest.mark.parametrize("terminal", [False, True])
def test_report_is_harmless(terminal: bool) -> None:
    layer = LayerResult(
        name=HOSTILE,
        end_to_end=1e6,
        introduced=1e6,
        floor=1e-7,
        introduced_floor=1e-7,
        magnitude=1.0,
        max_error=1.0,
        shape=(1,),
        chunk=0,
        chunks=(1e6,),
    )
    found = Diagnosis(
        cause="kernel-flip",
        layer=HOSTILE,
        parameter=HOSTILE,
        detail=HOSTILE,
        mend=HOSTILE,
        before=1e6,
        after=None,
    )
    report = Report({"name": HOSTILE}, {"name": HOSTILE}, {}, (layer,), diagnosis=(found,))
    out = io.StringIO()
    print_report(report, Console(file=out, force_terminal=terminal, width=300, no_color=True))
    assert_harmless(out.getvalue())
    (case,) = ElementTree.fromstring(junit(report)).iter("testcase")
    assert case.attrib["name"] == SHOWN


def test_predictions_that_nobody_would_see_are_not_made(tmp_path: Path) -> None:
    command = f"{sys.executable} -m movinet_port.command_line predict v.mp4 --weights w.pt >&-"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: standard output is closed")
