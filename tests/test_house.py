"""The order of the house: which way imports go, and what the command line offers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import get_completion_class

from movinet_port.cli import main
from movinet_port.commands.examples import EXAMPLES

ROOT = Path(__file__).parents[1]

COMMAND_LINE = "the command line"
# Who may import whom, as CONTRIBUTING.md says.
MAY_IMPORT = {
    "weights": set(),
    "movinet_port": {"weights"},
    "converters": {"weights", "movinet_port"},
    "parity": {"weights", "movinet_port", "converters"},
    COMMAND_LINE: {"weights", "movinet_port", "converters", "parity"},
}
OURS = set(MAY_IMPORT) - {COMMAND_LINE}


def house_of(path: Path) -> str:
    name = path.relative_to(ROOT).as_posix()
    if name.startswith("movinet_port/commands/") or name.endswith("/cli.py"):
        return COMMAND_LINE
    return name.partition("/")[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every import of ours in a file, inside functions too: (line, module)."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.partition(".")[0] in OURS:
                yield node.lineno, name


@pytest.mark.parametrize("package", sorted(OURS))
def test_imports_go_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    seen = 0
    for path in files:
        # Run by hand, with the authors' code.
        if path.name == "make_sample.py":
            continue
        house = house_of(path)
        for line, name in imports(path):
            seen += 1
            target, _, rest = name.partition(".")
            where = f"{path.relative_to(ROOT)}:{line} imports {name}"
            assert target == package or target in MAY_IMPORT[house], where
            is_command_line = rest.partition(".")[0] in ("cli", "commands")
            assert house == COMMAND_LINE or not is_command_line, where
    assert seen or package == "weights"


def test_every_package_is_in_the_house() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == OURS


# The command line ------------------------------------------------------------------------------

COMMANDS = sorted(main.commands)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_command_does_and_ends_with_examples(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert name in EXAMPLES, f"add examples to movinet_port/commands/examples.py: {name}"
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
        main(["completion", shell], prog_name="python -m movinet_port.cli")
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
