"""The command line. TensorFlow is imported by the commands that read its files, not before."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, get_args

import click
from rich.console import Console
from rich.table import Table

import movinet_port
from movinet_port.checkpoint import SAFETENSORS, Checkpoint
from movinet_port.command_line import summaries
from movinet_port.command_line.compile import compile_command
from movinet_port.command_line.completion import completion
from movinet_port.command_line.demo import demo
from movinet_port.command_line.examples import add_examples
from movinet_port.command_line.export import export
from movinet_port.command_line.finetune import finetune
from movinet_port.command_line.output import say, say_rows
from movinet_port.command_line.parity import parity
from movinet_port.command_line.predict import predict
from movinet_port.command_line.written import read_written
from movinet_port.errors import MismatchError, MovinetPortError, nearest, one_line
from movinet_port.files import check_outputs, whole_file
from movinet_port.labels import read_labels
from movinet_port.progress import on_terminal, show_progress
from movinet_port.spec import Activation, CausalPadding, ConvType, Gate, SEType
from movinet_port.variants import list_models

MISMATCH = 1
USER_ERROR = 2


class _Group(click.Group):
    """A group whose commands end with one line and exit code 2 on a user's error."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command and exit; a mistake in the command line is one line too."""
        extra["standalone_mode"] = False
        try:
            code = super().main(*args, **extra)
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            see = f"; see '{context.command_path} --help'" if context else ""
            _fail(f"{error.format_message().rstrip('.')}{_nearest_choice(error)}{see}", USER_ERROR)
        except OSError as error:
            # Files have their own errors: what is left, and has no name, is standard output.
            where = error.filename or "standard output"
            _fail(f"{where}: {error.strerror or error}", USER_ERROR)
        sys.exit(code)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:  # as a shell asks for completions
            click.echo(ctx.get_help(), err=True)
            ctx.exit(USER_ERROR)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _terminable():
                return super().invoke(ctx)
        except MismatchError as error:
            _fail(error, MISMATCH)
        except MovinetPortError as error:
            _fail(error, USER_ERROR)
        except KeyboardInterrupt:
            _fail("interrupted", 128 + signal.SIGINT)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            help_text = nearest(args[0], self.list_commands(ctx))
            raise click.UsageError(f"{error.message.rstrip('.')}{help_text}", ctx) from error


def _nearest_choice(error: click.ClickException) -> str:
    """Return a hint if a value was given that is none of an option's choices."""
    kind = getattr(getattr(error, "param", None), "type", None)
    given = re.search("'(.*)' is not one of", error.message)
    if given is None or not isinstance(kind, click.Choice):
        return ""
    return nearest(given[1], [str(choice) for choice in kind.choices])


def _fail(error: Exception | str, code: int) -> NoReturn:
    say(f"error: {one_line(str(error))}", err=True)
    sys.exit(code)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a command by an exception, so that temporary files are removed."""

    def stop(number: int, frame: object) -> None:
        sys.exit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread: nothing to arrange
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    help="TF Hub or Kaggle handle, URL or path of a tar.gz, SavedModel folder, TF2 checkpoint, "
    "Keras file (.h5, .weights.h5, .keras), or state dict of the first PyTorch port (.pt, .pth). "
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
@click.option(
    "--engine",
    type=click.Choice(["pytorch", "tensorflow"]),
    default="pytorch",
    show_default=True,
    help="What runs the source's graph to compare both sides.",
)
@click.option("--gate", type=click.Choice(get_args(Gate)), help="Where no graph tells.")
@click.option("--padding", type=click.Choice(get_args(CausalPadding)), help="Likewise.")
@click.option("--activation", type=click.Choice(get_args(Activation)), help="Likewise.")
@click.option(
    "--no-tf-like",
    is_flag=True,
    help="The first PyTorch port's tf_like=False: padding that does not look at the stride, pools "
    "that count it.",
)
@click.option("--se-type", type=click.Choice(get_args(SEType)), help="Likewise.")
@click.option("--norm-epsilon", type=float, help="Of every batch normalisation; likewise.")
@click.option(
    "--classifier-activation",
    type=click.Choice(get_args(Activation)),
    help="Between the two classifier layers; likewise.",
)
@click.option(
    "--conv-type",
    type=click.Choice(get_args(ConvType)),
    help="2plus1d or 3d_2plus1d: the same function, run with 2-D or with 3-D kernels.",
)
@click.option(
    "--root",
    metavar="NAME",
    help="In a file of several networks: what the names of the wanted one's variables start with.",
)
@click.option("--ema", is_flag=True, help="Take the averaged weights that training kept.")
@click.option(
    "--ignore",
    multiple=True,
    metavar="PATTERN",
    help="Leave out the variables of this name, which are no part of the network; * stands for "
    "anything. May be given more than once.",
)
@click.option(
    "--labels",
    "labels_file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Text file with the classes' names, one per line, to keep in the output.",
)
@click.option(
    "--all",
    "whole_catalogue",
    is_flag=True,
    help="Every published file (of --model and --mode, if named) into the folder --out; what is "
    "there already and whole is kept.",
)
@click.option("--out", type=click.Path(file_okay=False), help="Folder for --all.")
@click.option("-v", "--verbose", is_flag=True, help="Show TensorFlow's own messages.")
def convert(
    model: str | None,
    mode: str | None,
    source: str | None,
    output: str | None,
    suffix: str | None,
    no_verify: bool,
    engine: str,
    gate: str | None,
    padding: str | None,
    activation: str | None,
    no_tf_like: bool,
    se_type: str | None,
    norm_epsilon: float | None,
    classifier_activation: str | None,
    conv_type: str | None,
    root: str | None,
    ema: bool,
    ignore: tuple[str, ...],
    labels_file: str | None,
    whole_catalogue: bool,
    out: str | None,
    verbose: bool,
) -> None:
    """Convert a TensorFlow MoViNet into a PyTorch checkpoint, and compare both sides.

    Exit code 0: converted. 1: the logits differ, nothing was written. 2: the source or the
    output cannot be used.
    """
    from converters import convert_source
    from converters.tensorflow import import_tensorflow, quiet

    given = {
        "gate": gate,
        "causal_padding": "legacy" if no_tf_like else padding,
        "pool_counts_padding": True if no_tf_like else None,
        "activation": activation,
        "se_type": se_type,
        "norm_epsilon": norm_epsilon,
        "classifier_activation": classifier_activation,
        "conv_type": conv_type,
    }
    if whole_catalogue or out is not None:
        single = {"--hub-url": source, "-o": output, "--labels": labels_file, **given}
        single |= {"--root": root, "--ema": ema or None, "--ignore": ", ".join(ignore) or None}
        _convert_all(whole_catalogue, out, single, model, mode, suffix, not no_verify, verbose)
        return
    if source is None:
        source = _newest(model, mode)
    if output is not None:
        _check_output(output, suffix, source, labels_file)
    with quiet(verbose), show_progress() as progress:
        if engine == "tensorflow":
            import_tensorflow(verbose)
        conversion = convert_source(
            source,
            model=model,
            mode=mode,
            root=root,
            ema=ema,
            ignore=ignore,
            verify=not no_verify,
            engine=engine,
            progress=progress,
            **{field: value for field, value in given.items() if value is not None},
        )
        checkpoint = conversion.checkpoint
        spec = checkpoint.spec
        if labels_file is not None:
            labels = read_labels(labels_file, spec.num_classes)
            checkpoint = dataclasses.replace(checkpoint, labels=labels)
        if output is None:
            output = f"movinet_{spec.name}_{spec.mode}.{suffix or 'pt'}"
            _check_output(output, suffix, source, labels_file)
        progress(f"writing {output}")
        movinet_port.save(checkpoint, output)
    rows = summaries.identity_rows(conversion)
    rows += summaries.deviation_rows(conversion, evidence=False)
    rows += summaries.assumption_rows(conversion)
    rows.append(("written", output))
    if conversion.verification is not None:
        rows += summaries.verification_rows(conversion.verification)
    else:
        rows.append(("compared", "no: --no-verify" if no_verify else "no: it has no graph"))
    say_rows(rows)


def _convert_all(
    whole_catalogue: bool,
    out: str | None,
    single: dict[str, Any],
    model: str | None,
    mode: str | None,
    suffix: str | None,
    verify: bool,
    verbose: bool,
) -> None:
    import weights
    from converters.batch import TABLE, convert_all
    from converters.tensorflow import quiet

    if not whole_catalogue or out is None:
        raise click.UsageError("--all and --out FOLDER go together")
    odd = [name for name, value in single.items() if value is not None]
    if odd:
        raise click.UsageError(f"--all does not go with {', '.join(odd)}")
    entries = [
        entry
        for entry in weights.catalogue()
        if model in (None, entry.model.name) and mode in (None, entry.model.mode)
    ]
    outcomes = []
    with quiet(verbose), show_progress() as progress:
        for outcome in convert_all(
            entries, Path(out), suffix=suffix or "pt", verify=verify, progress=progress
        ):
            outcomes.append(outcome)
            difference = "" if outcome.difference is None else f"{outcome.difference:.1e}"
            text = outcome.error or f"{outcome.network}  {difference}"
            click.echo(f"{outcome.status:<10}  {outcome.file:<34}  {text}".rstrip())
    failed = sum(not outcome for outcome in outcomes)
    click.echo(f"{len(outcomes) - failed} of {len(outcomes)} are there; {Path(out) / TABLE}")
    if failed:
        _fail(f"{failed} of {len(outcomes)} files could not be converted", USER_ERROR)


def _newest(model: str | None, mode: str | None) -> str:
    import weights

    if model is None or mode is None:
        raise click.UsageError("name a source with --hub-url, or both --model and --mode")
    try:
        return weights.newest_handle(model, mode)
    except LookupError as error:
        raise MovinetPortError(f"{error.args[0]}; name a source with --hub-url") from error


class _NothingWritten(Exception):
    pass


def _check_output(path: str, suffix: str | None, source: str, labels: str | None) -> None:
    """Find out before the work what would keep its result from being written."""
    is_safetensors = Path(path).suffix == SAFETENSORS
    if suffix is not None and is_safetensors != (suffix == "safetensors"):
        raise MovinetPortError(
            f"--format {suffix} and the output {path} contradict each other; a safetensors file "
            f"ends in {SAFETENSORS}, a PyTorch file in anything else"
        )
    check_outputs({"-o": path}, [("the source", source), ("the file of labels", labels)])
    # A file that is not finished leaves nothing behind.
    with contextlib.suppress(_NothingWritten), whole_file(path):
        raise _NothingWritten


@main.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE [OTHER]")
@click.option("-v", "--verbose", is_flag=True, help="Show TensorFlow's own messages.")
def inspect(sources: tuple[str, ...], verbose: bool) -> None:
    """Say what a source is, or how two sources differ, without converting anything.

    SOURCE is what convert's --hub-url takes, or a file that movinet-port wrote.
    """
    from converters import convert_source
    from converters.inspect import difference
    from converters.tensorflow import quiet

    if len(sources) > 2:
        raise click.UsageError(f"one or two sources, found {len(sources)}")
    found: list[tuple[summaries.Rows, Checkpoint | None]] = []
    for source in sources:
        written = read_written(Path(source))
        if written is not None:
            found.append((summaries.written_rows(source, written), written.checkpoint))
            continue
        with quiet(verbose), show_progress() as progress:
            conversion = convert_source(source, verify=False, progress=progress)
        rows = (
            summaries.identity_rows(conversion)
            + summaries.deviation_rows(conversion, evidence=True)
            + summaries.assumption_rows(conversion)
        )
        found.append((rows, conversion.checkpoint))
    for rows, _ in found:
        say_rows(rows)
        click.echo()
    if len(found) == 2:
        for source, (_, checkpoint) in zip(sources, found, strict=True):
            if checkpoint is None:
                raise MovinetPortError(
                    f"{source} gives no weights to compare; give the file it was made from"
                )
        first, second = (checkpoint for _, checkpoint in found if checkpoint is not None)
        say_rows(summaries.difference_rows(difference(first, second)))


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
    width = None if on_terminal() else 400
    Console(width=width, highlight=False).print(table)


main.add_command(export)
main.add_command(parity)
main.add_command(predict)
main.add_command(finetune)
main.add_command(demo)
main.add_command(completion)
main.add_command(compile_command)
add_examples(main)
