"""The command ``movinet-port completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

PROGRAM = "movinet-port"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that completes commands and options in a shell."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, PROGRAM, "_MOVINET_PORT_COMPLETE").source())
