"""Every command and every snippet of the README and of docs/ is run.

To add a page: nothing, if its commands run with what `prepare` puts into the folder. Names that
stand for something of the reader's (SOURCE, video.mp4) get an entry in STANDS_FOR or a file in
`prepare`; what cannot run here gets an entry in NOT_RUN, with the reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import movinet_port
from movinet_port.command_line.cli import main
from movinet_port.inputs import InputFormat

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/*.md"))]

SAMPLE = "weights/samples/movinet_mini_stream.tar.gz"

# Commands that are not run, and why. A command is written here as it is after comments are cut.
NOT_RUN = {
    "make demo": "makes an environment; tests/test_package.py runs movinet-port demo",
    "make test": "would run itself",
    "movinet-port compile --weights a0_stream.pt --frames 1 --size 172 -o a0_stream.pt2": (
        "takes minutes; tests/test_compiled.py compiles a small network"
    ),
    "pip install '.[report]'": "downloads; tests/test_package.py installs the wheel",
    "torchrun --nproc-per-node 4 --no-python movinet-port finetune videos --weights a0_base.pt "
    "-o gpus": "four processes; tests/test_finetune.py runs two",
}

# What stands for something of the reader's: a pattern in a command, and what it is here.
STANDS_FOR = {
    r"--model a0 --mode stream -o movinet_a0_stream.pt": f"--hub-url {SAMPLE} -o sample.pt",
    r"--model a0 --mode stream": f"--hub-url {SAMPLE}",
    r"\bSOURCE\b": SAMPLE,
    r"\bOTHER\b": "tests/data/era2_mini_stream.tar.gz",
    r"\bmodel\.tflite\b": "tests/data/lite_relu6_gate.float16.tflite",
}

# Options that make a command short: a pattern, and what follows it then; the last option counts.
SHORTENED = {
    r"^movinet-port finetune ": "--epochs 1 --workers 0",
    r"^python examples/finetune.py ": "--epochs 1 --workers 0",
    r"^movinet-port parity (?!.*\.(npz|tflite) --weights)": "--size 32",
    # The sample that stands for a published network does not say what it was made for.
    r"^movinet-port predict --weights a0_stream.pt --stream video": "--size 32 --fps 5",
}

# Shell commands that may be run as they are.
SHELL = {"mkdir", "tar", "cat", "ls", "head"}


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block, one line each, without comments."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        lines = (re.sub(r"(^|\s+)#.*", "", line).strip() for line in joined.splitlines())
        return [line for line in lines if line]

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, reference: bool = False) -> list[Block]:
    """The blocks that run here, or those that need the authors' code."""
    text = (ROOT / page).read_text("utf-8")
    found = []
    fenced = r"^( *)```(\w*)( reference)?\n(.*?)^ *```$"
    for match in re.finditer(fenced, text, re.MULTILINE | re.DOTALL):
        if bool(match[3]) != reference:
            # What needs the authors' code is run by tests/test_export_reference.py.
            continue
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, match[2], match[4]))
    return found


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]


# What the pages may use ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted() -> movinet_port.Checkpoint:
    """The sample as it stands for every published network: with a form of clips, small."""
    pytest.importorskip("tensorflow")
    from converters import convert

    clip = InputFormat(size=32, resize=32, frames_per_second=5.0, frames=4)
    return dataclasses.replace(convert(ROOT / SAMPLE, verify=False), input=clip)


@pytest.fixture(scope="module")
def a0() -> movinet_port.Checkpoint:
    """A0 stream, with random weights, where a page insists on that network."""
    model = movinet_port.create_model("a0", "stream")
    return movinet_port.Checkpoint(model.spec, model.state_dict())


@pytest.fixture
def prepare(
    converted: movinet_port.Checkpoint,
    a0: movinet_port.Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    video: Callable[..., torch.Tensor],
) -> dict[str, Any]:
    """Go to a folder with the files that the pages speak of; return the names snippets may use."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOVINET_PORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))
    for name in ("tests", "weights", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("mini.pt", "a0_stream.pt", "a0_base.pt"):
        movinet_port.save(converted, name)
    movinet_port.save(a0, "movinet_a0_stream.pt")
    write_videos(tmp_path)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    clip = video(2, 4, 32, 32, dtype=torch.float32)
    return {
        "clip": clip,
        "batch": 2,
        "height": 32,
        "width": 32,
        "checkout": str(ROOT),
        "batches": [(clip, torch.tensor([0, 2]))],
    }


def write_videos(folder: Path) -> None:
    """video.mp4, and videos/ with two classes of five."""
    with contextlib.suppress(movinet_port.MovinetPortError):
        from movinet_port.video import write_video

        generator = torch.Generator().manual_seed(0)
        for name in (
            "video.mp4",
            *(f"videos/{c}/{n}.mp4" for c in ("jump", "run") for n in "12345"),
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shape = (6, 36, 40, 3)
            images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            write_video(str(folder / name), images, 5)


# Running ---------------------------------------------------------------------------------------


def as_run(command: str) -> str:
    """Return a command with what is the reader's replaced."""
    for pattern, replacement in STANDS_FOR.items():
        command = re.sub(pattern, replacement, command)
    shorter = [options for pattern, options in SHORTENED.items() if re.search(pattern, command)]
    return " ".join([command, *shorter])


def run_command(block: Block, command: str) -> None:
    words = shlex.split(as_run(command))
    if words[0] == "movinet-port":
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(words[1:], prog_name="movinet-port")
            except SystemExit as ended:
                code = ended.code or 0
        text = err.getvalue()
    else:
        words[0] = {"python": sys.executable}.get(words[0], words[0])
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(words, env=environment, capture_output=True, text=True)
        code, text = ended.returncode, ended.stderr
    if code:
        pytest.fail(
            f"{block.where}: exit code {code}: {command}\nrun as: {shlex.join(words)}\n{text}",
            pytrace=False,
        )


def run_python(block: Block, names: dict[str, Any]) -> None:
    # So that a traceback names the line of the page.
    code = compile("\n" * block.line + block.text, block.page, "exec")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, names)
    except Exception:
        pytest.fail(f"{block.where}: {traceback.format_exc()}", pytrace=False)


@pytest.fixture(autouse=True)
def modules() -> Iterator[None]:
    """What a snippet does to PyTorch's settings ends with it."""
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("page", PAGES)
def test_page_runs_from_top_to_bottom(page: str, prepare: dict[str, Any]) -> None:
    names = {"__name__": "__main__", **prepare}
    for block in blocks(page):
        if block.language == "python":
            run_python(block, names)
        for command in block.commands if block.language == "sh" else ():
            if command not in NOT_RUN:
                run_command(block, command)


# Nothing escapes -------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ALL_BLOCKS, ids=lambda block: block.where)
def test_block_is_run_or_listed_with_a_reason(block: Block) -> None:
    known = ("sh", "python", "text", "json")
    assert block.language in known, f"{block.where}: say which language: one of {known}"
    if block.language != "sh":
        return
    for command in block.commands:
        first, *rest = command.split()
        runs = first in {"movinet-port", *SHELL} or (first, rest[:1]) == (
            "python",
            ["examples/finetune.py"],
        )
        assert runs or command in NOT_RUN, (
            f"{block.where}: {command!r} is not run: let run_command run it, or list it in "
            f"NOT_RUN of tests/test_docs.py with the reason"
        )


def test_no_entry_of_a_table_is_out_of_date() -> None:
    commands = [command for block in ALL_BLOCKS for command in block.commands]
    assert set(NOT_RUN) <= set(commands)
    for pattern in (*STANDS_FOR, *SHORTENED):
        assert any(re.search(pattern, command) for command in commands), pattern


def test_commands_and_options_in_the_text_exist() -> None:
    """Also those in the middle of a sentence: `movinet-port convert --all`."""
    for page in [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"]:
        text = (ROOT / page).read_text("utf-8")
        for span in re.findall(r"`([^`]+)`", text):
            match = re.match(r"(?:movinet-port )([a-z]\S*)(.*)", " ".join(span.split()))
            if match is None:
                continue
            assert match[1] in main.commands, f"{page}: {span}"
            known = {text for option in main.commands[match[1]].params for text in option.opts}
            used = re.findall(r"(?<!\S)--?[a-z][\w-]*", match[2])
            assert set(used) <= known | {"--help"}, f"{page}: {span}"


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


def test_citation_file_has_what_the_format_asks_for() -> None:
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    # https://github.com/citation-file-format, schema 1.2.0: the keys that are required.
    assert citation["cff-version"] == "1.2.0"
    for part in (citation, citation["preferred-citation"]):
        assert part["title"]
        for author in part["authors"]:
            assert author.keys() in ({"name"}, {"given-names", "family-names"})
    assert citation["message"]
    assert citation["preferred-citation"]["type"] == "conference-paper"
    assert "2103.11511" in citation["preferred-citation"]["url"]
