"""The command ``movinet-port demo``."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import click

from movinet_port.errors import MovinetPortError

SAMPLE = "movinet_mini_stream"


@click.command()
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("movinet-port-demo"),
    show_default=True,
    help="Folder for the converted file and the report.",
)
@click.pass_context
def demo(context: click.Context, out: Path) -> None:
    """Convert the small sample model that comes along, and compare both sides.

    Writes movinet_mini_stream.pt and parity.html. Needs no network.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MovinetPortError(
            f"cannot write {out}: {error.strerror}; name another folder with --out"
        ) from error
    command = context.find_root().command
    assert isinstance(command, click.Group)
    sample = importlib.resources.files("weights").joinpath(f"samples/{SAMPLE}.tar.gz")
    with importlib.resources.as_file(sample) as archive:
        converted = str(out / f"{SAMPLE}.pt")
        context.invoke(command.commands["convert"], source=str(archive), output=converted)
        click.echo()
        context.invoke(
            command.commands["parity"],
            source=str(archive),
            weights=converted,
            html=str(out / "parity.html"),
        )
