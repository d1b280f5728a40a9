"""The command line. TensorFlow is imported by the commands that read its files, not before."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, get_args

import click
from rich.console import Console
from rich.table import Table

import movinet_port
from movinet_port.checkpoint import SAFETENSORS
from movinet_port.errors import MovinetPortError, nearest
from movinet_port.labels import read_labels
from movinet_port.spec import Activation, CausalPadding, Gate
from movinet_port.variants import list_models

if TYPE_CHECKING:
    from converters import Conversion

MISMATCH = 1
USER_ERROR = 2


class _Group(click.Group):
    """A group whose commands end with one line and exit code 2 on a user's error."""

    def invoke(self, ctx: click.Context) -> Any:
        from converters.errors import VerificationError

        try:
            with _terminable():
                return super().invoke(ctx)
        except VerificationError as error:
            _fail(error, MISMATCH)
        except MovinetPortError as error:
            _fail(error, USER_ERROR)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            help_text = nearest(args[0], self.list_commands(ctx))
            raise click.UsageError(f"{error.message}{help_text}", ctx) from error


def _fail(error: Exception, code: int) -> None:
    click.echo(f"error: {' '.join(str(error).split())}", err=True)
    sys.exit(code)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a command like Ctrl-C, so that temporary files are removed."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread: nothing to arrange
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows what is being done: on a terminal only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda activity: None
        return
    with console.status("") as status:
        yield lambda activity: status.update(activity)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(movinet_port.__version__, prog_name="movinet-port")
def main() -> None:
    """Take Google's MoViNets out of TensorFlow and into PyTorch."""


@main.command()
@click.option(
    "--model",
    type=click.Choice(list_models()),
    help="Fail if the source is another network; with --mode and no source: what to fetch.",
)
@click.option("--mode", type=click.Choice(["base", "stream"]), help="Likewise.")
@click.option(
    "--hub-url",
    "source",
    metavar="SOURCE",
    help="TF Hub or Kaggle handle, URL or path of a tar.gz, SavedModel folder, or TF2 checkpoint. "
    "Default: the newest published SavedModel of --model and --mode.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False),
    help="Default: movinet_MODEL_MODE.pt in the current folder.",
)
@click.option(
    "--format",
    "suffix",
    type=click.Choice(["pt", "safetensors"]),
    help="Default: by the suffix of the output, or else pt.",
)
@click.option("--no-verify", is_flag=True, help="Do not run both sides and compare.")
@click.option("--gate", type=click.Choice(get_args(Gate)), help="Where no graph tells.")
@click.option("--padding", type=click.Choice(get_args(CausalPadding)), help="Likewise.")
@click.option("--activation", type=click.Choice(get_args(Activation)), help="Likewise.")
@click.option(
    "--labels",
    "labels_file",
    type=click.Path(),
    metavar="FILE",
    help="Text file with the classes' names, one per line, to keep in the output.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show TensorFlow's own messages.")
def convert(
    model: str | None,
    mode: str | None,
    source: str | None,
    output: str | None,
    suffix: str | None,
    no_verify: bool,
    gate: str | None,
    padding: str | None,
    activation: str | None,
    labels_file: str | None,
    verbose: bool,
) -> None:
    """Convert a TensorFlow MoViNet into a PyTorch checkpoint, and compare both sides.

    Exit code 0: converted. 1: the logits differ, nothing was written. 2: the source or the
    output cannot be used.
    """
    from converters import convert_source
    from converters.tensorflow import import_tensorflow, quiet

    given = {"gate": gate, "causal_padding": padding, "activation": activation}
    with quiet(verbose), _progress() as progress:
        import_tensorflow(verbose)
        conversion = convert_source(
            source or _newest(model, mode),
            model=model,
            mode=mode,
            verify=not no_verify,
            progress=progress,
            **{field: value for field, value in given.items() if value is not None},
        )
        checkpoint = conversion.checkpoint
        spec = checkpoint.spec
        if labels_file is not None:
            labels = read_labels(labels_file, spec.num_classes)
            checkpoint = dataclasses.replace(checkpoint, labels=labels)
        path = output or f"movinet_{spec.name}_{spec.mode}.{suffix or 'pt'}"
        _check_suffix(path, suffix)
        progress(f"writing {path}")
        movinet_port.save(checkpoint, path)
    _print_summary(conversion, path, skipped=no_verify)


def _newest(model: str | None, mode: str | None) -> str:
    import weights

    if model is None or mode is None:
        raise click.UsageError("name a source with --hub-url, or both --model and --mode")
    try:
        return weights.newest_handle(model, mode)
    except LookupError as error:
        raise MovinetPortError(f"{error.args[0]}; name a source with --hub-url") from error


def _check_suffix(path: str, suffix: str | None) -> None:
    is_safetensors = path.endswith(SAFETENSORS)
    if suffix is not None and is_safetensors != (suffix == "safetensors"):
        raise MovinetPortError(
            f"--format {suffix} and the output {path} contradict each other; a safetensors file "
            f"ends in {SAFETENSORS}, a PyTorch file in anything else"
        )


def _print_summary(conversion: Conversion, path: str, skipped: bool) -> None:
    from converters.deviations import deviations

    checkpoint = conversion.checkpoint
    spec, findings = checkpoint.spec, {f.field: f for f in conversion.findings}
    trained = sum(
        tensor.numel()
        for name, tensor in checkpoint.state_dict.items()
        if not name.rpartition(".")[2].startswith(("running_", "num_batches"))
    )
    assumed = [f for f in conversion.findings if f.how != "read"]
    rows = [
        ("source", str(checkpoint.provenance["source"])),
        ("network", f"{spec.name} {spec.mode}, era {conversion.era}"),
        ("classes", str(spec.num_classes)),
        ("parameters", f"{trained:,} in {len(conversion.used)} variables, every one used once"),
        ("left out", ", ".join(conversion.outside) or "nothing"),
        *(
            ("deviation" if number == 0 else "", deviation.text + _basis(findings, deviation.field))
            for number, deviation in enumerate(deviations(spec))
        ),
        *(
            ("not read" if number == 0 else "", f"{f.field} = {f.value} is {f.how}: {f.where}")
            for number, f in enumerate(assumed)
        ),
        ("written", path),
    ]
    if conversion.verification is not None:
        check = conversion.verification
        batch, clips, frames, height, width = check.shape
        rows += [
            (
                "compared",
                f"{clips} clip{'s' if clips > 1 else ''} of {frames} frames of {height} x {width}, "
                f"batch {batch}, TensorFlow against PyTorch",
            ),
            (
                "difference",
                f"{check.difference:.2e} at logits up to {check.magnitude:.3g}: "
                f"{check.relative:.1e} of the largest (bound {check.bound:.0e})",
            ),
        ]
    else:
        rows.append(("compared", "no: --no-verify" if skipped else "no: the source has no graph"))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(label, text)
    # A pipe has no width to keep to.
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    if console.is_terminal:
        console.print(table, markup=False)
    else:
        for label, text in rows:
            click.echo(f"{label:<10}  {text}".rstrip())


def _basis(findings: dict[str, Any], field: str) -> str:
    finding = findings.get(field)
    return f" ({finding.how})" if finding is not None and finding.how != "read" else ""


@main.command(name="list")
@click.option("--files", is_flag=True, help="Every published file, not only the networks.")
def list_published(files: bool) -> None:
    """List the published networks, with their input sizes and accuracies."""
    import weights

    table = Table(box=None, pad_edge=False)
    if files:
        for heading in ("model", "mode", "kind", "version", "era", "url"):
            table.add_column(heading, no_wrap=True)
        for entry in weights.catalogue():
            table.add_row(
                entry.model.name,
                entry.model.mode,
                entry.container if entry.precision == "float32" else f"tflite {entry.precision}",
                str(entry.version or "-"),
                str(entry.era or "-"),
                entry.url,
            )
    else:
        headings = ("model", "mode", "input", "frames/s", "top-1", "top-5", "parameters", "handle")
        for heading in headings:
            table.add_column(heading, no_wrap=True)
        for model in weights.models():
            table.add_row(
                model.name,
                model.mode,
                f"{model.resolution} x {model.resolution}",
                str(model.frames_per_second),
                f"{model.top1:.2f}",
                f"{model.top5:.2f}",
                f"{model.parameters / 1e6:.1f} M",
                weights.newest_handle(model.name, model.mode),
            )
    # In a pipe, as wide as the longest row: a cut handle is of no use.
    width = None if sys.stdout.isatty() else 400
    Console(width=width, highlight=False).print(table)


if __name__ == "__main__":
    main()
