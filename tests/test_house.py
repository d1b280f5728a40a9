"""The order of the house: which way imports go, how large it is, what the command line offers."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.shell_completion import get_completion_class
from torch import nn
from torch.nn import functional as F

import movinet_port
from movinet_port.command_line.cli import main
from movinet_port.command_line.examples import EXAMPLES
from parity import ModelReference, compare, diagnose
from parity.hypotheses.faulty_layer import Explanation, FaultyLayer
from parity.reports.report import CAUSES

ROOT = Path(__file__).parents[1]

# Every file imports from its own floor and from those below it; the lowest comes first.
FLOORS = ("weights", "movinet_port", "converters", "parity", "movinet_port.command_line")

Graph = Mapping[str, Mapping[str, int]]


def modules(root: Path) -> dict[str, Path]:
    """Every file of the packages in a folder, by the name that it is imported by."""
    found = {}
    for package in root.glob("*/__init__.py"):
        for path in sorted(package.parent.rglob("*.py")):
            *folders, name = path.relative_to(root).with_suffix("").parts
            found[".".join(folders if name == "__init__" else [*folders, name])] = path
    # Run by hand, with the authors' code.
    found.pop("weights.samples.make_sample", None)
    return found


def imported(path: Path) -> Iterator[tuple[str, str, int]]:
    """Every import of a file, in functions and for type checkers too: module, name in it, line."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from ((node.module or "", alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            # As import_module takes it.
            yield node.value, "", node.lineno


def graph_of(files: Mapping[str, Path]) -> Graph:
    """For each file the files that it imports, and the line where it does.

    `from package import name` is an import of the file of that name where there is one, and of the
    package's own `__init__` where there is none.
    """
    graph: dict[str, dict[str, int]] = {}
    for importer, path in files.items():
        graph[importer] = {}
        for module, name, line in imported(path):
            file = f"{module}.{name}" if f"{module}.{name}" in files else module
            if file in files and file != importer:
                graph[importer].setdefault(file, line)
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """The groups of files that reach each other by imports, each with its names in order."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        left = [start]
        while left:
            new = graph[left.pop()].keys() - seen
            seen |= new
            left += new
        return seen

    after = {name: reached(name) for name in graph}
    groups = {tuple(sorted(o for o in after[n] if n in after[o])) for n in graph if n in after[n]}
    return [list(group) for group in sorted(groups)]


def floor(name: str) -> int:
    """The highest floor that a file belongs to."""

    def within(package: str) -> bool:
        return f"{name}.".startswith(f"{package}.")

    return max(i for i, package in enumerate(FLOORS) if within(package))


def arrows_up(graph: Graph) -> list[str]:
    """The imports of what is on a higher floor."""
    return [
        f"{name}, line {line}, imports {other}"
        for name, others in graph.items()
        for other, line in others.items()
        if floor(other) > floor(name)
    ]


FILES = modules(ROOT)
GRAPH = graph_of(FILES)


def test_every_package_is_in_the_house() -> None:
    assert {name.partition(".")[0] for name in FILES} == {f.partition(".")[0] for f in FLOORS}


def test_imports_go_one_way() -> None:
    assert sum(map(len, GRAPH.values())) > len(GRAPH)
    assert not arrows_up(GRAPH), "\n".join(["imports of a higher floor:", *arrows_up(GRAPH)])


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert not circles(GRAPH), "\n".join(
        f"a circle of {len(names)} files: {', '.join(names)}" for names in circles(GRAPH)
    )


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a": "import parity.b", "b": "import parity.a"}, ["parity.a", "parity.b"]),
        ({"a": "from parity import b", "b": "from parity import a"}, ["parity.a", "parity.b"]),
        (
            {"__init__": "from parity.a import x", "a": "from parity import y"},
            ["parity", "parity.a"],
        ),
        (
            {"a": "from parity.b import x", "b": "def f():\n    from parity.a import y"},
            ["parity.a", "parity.b"],
        ),
        (
            {"a": "from parity.b import x", "b": "if TYPE_CHECKING:\n    from parity.a import y"},
            ["parity.a", "parity.b"],
        ),
        (
            {"a": "import parity.b", "b": "import parity.c", "c": "import_module('parity.a')"},
            ["parity.a", "parity.b", "parity.c"],
        ),
        ({"a": "import parity.b", "b": "import parity.c", "c": "import torch"}, []),
        # Names in a package are not the package.
        ({"a": "from parity.b import x", "b": "from parity.c import a", "c": ""}, []),
    ],
)
def test_a_circle_is_found_wherever_the_import_stands(
    files: dict[str, str], expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "parity").mkdir()
    for name, text in {"__init__": "", **files}.items():
        (tmp_path / f"parity/{name}.py").write_text(text)
    found = circles(graph_of(modules(tmp_path)))
    assert found == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("importer", "line", "is_up"),
    [
        ("weights/a.py", "from movinet_port import spec", True),
        ("movinet_port/a.py", "from weights import x", False),
        ("movinet_port/a.py", "import converters", True),
        ("converters/a.py", "from movinet_port.command_line.cli import main", True),
        ("movinet_port/a.py", "from movinet_port.command_line import cli", True),
        ("movinet_port/command_line/a.py", "import parity", False),
        ("movinet_port/command_line/a.py", "from movinet_port.command_line import cli", False),
    ],
)
def test_an_import_of_a_higher_floor_is_found(
    importer: str, line: str, is_up: bool, tmp_path: Path
) -> None:
    for name in FLOORS:
        (tmp_path / name.replace(".", "/")).mkdir()
        (tmp_path / name.replace(".", "/") / "__init__.py").touch()
    for name in ("movinet_port/spec.py", "movinet_port/command_line/cli.py"):
        (tmp_path / name).touch()
    (tmp_path / importer).write_text(line)
    assert bool(arrows_up(graph_of(modules(tmp_path)))) == is_up


# Its size ----------------------------------------------------------------------------------------

# `cat` of all files of these packages piped to `wc -l`, as far as they are somebody's text.
MOST_LINES = 31_900
COUNTED = ("movinet_port", "converters", "parity")


def test_the_house_grows_on_purpose_only() -> None:
    files = [path for name in COUNTED for path in (ROOT / name).rglob("*") if path.is_file()]
    lines = sum(
        path.read_bytes().count(b"\n")
        for path in files
        if path.suffix not in (".pyc", ".so") and not path.name.startswith(".")
    )
    assert lines <= MOST_LINES, (
        f"{lines} lines in {', '.join(COUNTED)}, at most {MOST_LINES}: say the same in fewer, or "
        f"raise MOST_LINES in tests/test_house.py in the commit that needs them, and say there why"
    )
    # A limit far above what there is limits nothing.
    assert lines > 0.9 * MOST_LINES, f"{lines} lines: lower MOST_LINES in tests/test_house.py"


# The command line ------------------------------------------------------------------------------

COMMANDS = sorted(main.commands)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_command_does_and_ends_with_examples(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert name in EXAMPLES, f"add examples to movinet_port/command_line/examples.py: {name}"
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"], prog_name="movinet-port")
    assert not ended.value.code
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: movinet-port {name} ")
    assert main.commands[name].help
    *_, last = EXAMPLES[name]
    assert text.rstrip().endswith(last)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_name_options_that_exist(name: str) -> None:
    options = {text for p in main.commands[name].params for text in p.opts} | {"--help"}
    for example in EXAMPLES[name]:
        words = example.partition(f"movinet-port {name}")[2].split()
        assert words or example.endswith(name), example
        assert {word for word in words if word.startswith("-")} <= options, example


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does_or_has_a_default(name: str) -> None:
    for parameter in main.commands[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help or parameter.show_default, parameter.opts


@pytest.mark.parametrize(
    ("shell", "part"),
    [
        ("bash", "complete -o nosort -F _movinet_port_completion movinet-port"),
        ("zsh", "#compdef movinet-port"),
        ("fish", "complete --no-files --command movinet-port"),
    ],
)
def test_completion_script_is_for_that_shell(
    shell: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["completion", shell], prog_name="python -m movinet_port.command_line")
    assert not ended.value.code
    assert part in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ([], "conv", {"convert"}),
        (["convert"], "--mod", {"--model", "--mode"}),
        (["convert", "--mode"], "st", {"stream"}),
        (["completion"], "", {"bash", "zsh", "fish"}),
    ],
)
def test_shell_completes_commands_options_and_values(
    words: list[str], incomplete: str, expected: set[str]
) -> None:
    shell = get_completion_class("bash")
    assert shell is not None
    asked = shell(main, {}, "movinet-port", "_MOVINET_PORT_COMPLETE")
    assert {item.value for item in asked.get_completions(words, incomplete)} == expected


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["finetun"], "did you mean 'finetune'?"),
        (["convert", "--mode", "steam"], "did you mean 'stream'?"),
        (["convert", "--gate", "hard_sigmoid"], "did you mean 'hard_sigmoid_"),
        (["convert", "--hub-ulr", "x"], "--hub-url"),
        (["completion", "basch"], "did you mean 'bash'?"),
    ],
)
def test_mistake_is_answered_with_the_nearest_name(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments, prog_name="movinet-port")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert hint in line


# What a new thing takes, as CONTRIBUTING.md says --------------------------------------------------
# Rows of the other tables: a container's is in tests/test_containers.py, a backend's in
# tests/test_fast.py, an export target's in tests/test_export.py, a variant's in tests/test_spec.py.


class Wobble(nn.Module):
    """What nobody should use for an activation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(x) + 0.3 * torch.sin(5 * x)


def test_a_cause_is_a_row(tiny_spec: Any, randomised: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wobbles(layer: FaultyLayer) -> Iterator[Explanation]:
        steady = [F.silu(x) for x in layer.inputs]
        if layer.fits(steady):
            yield Explanation("wobble", "sin(5 x)", "Leave it out.", layer.score(steady))

    right = randomised(movinet_port.MoViNet(tiny_spec("base")))
    wrong = copy.deepcopy(right)
    wrong.stem.activation = Wobble()
    clip = np.random.default_rng(0).random((1, 3, 3, 20, 24), dtype=np.float32)
    (found,) = compare(ModelReference(right), wrong, clip).diagnosis
    assert (found.layer, found.cause) == ("stem.activation", "activation")
    # What fits first is said, and rows for every kind of module come last.
    rows = (((Wobble,), wobbles), *diagnose.HYPOTHESES)
    monkeypatch.setattr(diagnose, "HYPOTHESES", rows)
    monkeypatch.setitem(CAUSES, "wobble", "the activation wobbles")
    (found,) = compare(ModelReference(right), wrong, clip).diagnosis
    assert (found.layer, found.cause) == ("stem.activation", "wobble")
