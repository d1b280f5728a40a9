"""Printing. Names of files, classes and layers come from outside: all text goes through here."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from movinet_port.errors import printable
from movinet_port.progress import on_terminal, plain


def say(text: str, err: bool = False) -> None:
    """Print a line."""
    click.echo(printable(text).rstrip(), err=err)


def say_rows(rows: list[tuple[str, str]]) -> None:
    """Print labelled rows: folded to the width of a terminal, one line each into a pipe."""
    if not on_terminal():
        for label, text in rows:
            say(f"{label:<10}  {text}")
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(label, plain(text))
    Console(highlight=False).print(table)
