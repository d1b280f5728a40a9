"""From a source to a checkpoint: recognise it, fill every parameter, verify the result."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import movinet_port
from converters import dialects
from converters.containers import CONTAINERS
from converters.containers.variables import MOST_BYTES
from converters.deviations import era
from converters.errors import ConversionError
from converters.fetch import Source, open_source
from converters.interpreter.engines import DEFAULT
from converters.layouts import to_torch_layout
from converters.locate import Located, Selection, locate_variables
from converters.recognise import Finding, recognise
from converters.verify import require
from movinet_port.agreement import Agreement
from movinet_port.checkpoint import Checkpoint, listing
from movinet_port.inputs import published_input
from movinet_port.model import MoViNet
from movinet_port.spec import ModelSpec
from weights import find_handle

# Called with what is being done; the command line shows it.
Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A converted source.

    Attributes:
        checkpoint: what `movinet_port.save` writes.
        findings: what was recognised, and whether it was read or assumed.
        era: which era of the authors' code the network is from, as `deviations.era` says.
        used: variables of the source that fill the network.
        outside: variables of the source that are no part of the network.
        averages: where averaged weights are that nothing asked for; empty if there are none.
        facts: what else the source says of itself.
        verification: the comparison of both sides; None if there was none.
    """

    checkpoint: Checkpoint
    findings: tuple[Finding, ...]
    era: int
    used: tuple[str, ...]
    outside: tuple[str, ...]
    averages: str
    facts: Mapping[str, str]
    verification: Agreement | None


def convert(source: str | os.PathLike[str], **options: Any) -> Checkpoint:
    """Convert a source and return its checkpoint; the arguments are `convert_source`'s."""
    return convert_source(source, **options).checkpoint


def convert_source(
    source: str | os.PathLike[str],
    *,
    model: str | None = None,
    mode: str | None = None,
    root: str | None = None,
    ema: bool = False,
    ignore: Sequence[str] = (),
    verify: bool = True,
    engine: str = DEFAULT,
    progress: Progress = lambda activity: None,
    **given: Any,
) -> Conversion:
    """Convert a MoViNet of TensorFlow's.

    Args:
        source: a TF Hub or Kaggle handle, an URL of a tar.gz, a SavedModel's folder, a tar.gz, a
            TF2 object-graph checkpoint, a Keras file (.h5, .weights.h5, .keras), a TF Lite file,
            or a state dict file of the first PyTorch port.
        model: "a0" to "a5" or "t0": fail if the source is another network.
        mode: "base" or "stream": fail if the source is the other one.
        root: what the names of the network's variables start with, in a file of several networks.
        ema: take the moving averages of the weights that training kept.
        ignore: names of variables that are no part of the network and may be left out; ``*``
            stands for anything.
        verify: run both sides on a random clip and compare, where the source has a graph.
        engine: what runs the source's graph: "pytorch", or "tensorflow" where it is installed.
        progress: called with a line of text when a step begins.
        **given: fields of `ModelSpec` that weights cannot tell (``gate``, ``causal_padding``,
            ``activation``, ``se_type``, ``causal``, ``norm_epsilon``), for a source without a
            graph. A source's graph must not contradict them.

    Raises:
        ConversionError: the source is damaged, no MoViNet, not the one asked for, or contradicts
            what was given.
        VerificationError: the converted network does not give the source's logits.
    """
    _check_given(given)
    if mode is not None and mode not in ("base", "stream"):
        raise ConversionError(f"mode is {mode!r}, expected 'base' or 'stream'")
    with open_source(source, progress) as opened, _naming(opened):
        container = CONTAINERS[opened.kind]
        if mode is not None and container.evidence is None:
            given = {**given, "causal": mode == "stream"}
        selection = Selection(root, ema, tuple(ignore))
        conversion = _convert_opened(opened, given, progress, selection)
        _check_identity(conversion.checkpoint.spec, model, mode)
        if verify and container.verify is not None:
            progress("running both sides on a random clip")
            built = conversion.checkpoint.build()
            verification = container.verify(opened.path, built, engine)
            conversion = dataclasses.replace(conversion, verification=verification)
            require(verification)
        return conversion


@contextlib.contextmanager
def _naming(source: Source) -> Iterator[None]:
    """Have errors name the source as it was given, and not where it was unpacked."""
    where = source.provenance["source"]
    try:
        yield
    except ConversionError as error:
        text = str(error).removeprefix(f"{where}: ").removeprefix(f"{source.path}: ")
        # A relative one may be as short as the names of variables.
        if source.path.is_absolute():
            text = text.replace(f"{source.path}{os.sep}", "")
        raise type(error)(f"{where}: {text}") from error


def _convert_opened(
    source: Source,
    given: Mapping[str, Any],
    progress: Progress,
    selection: Selection | None = None,
) -> Conversion:
    container = CONTAINERS[source.kind]
    progress("reading variables")
    found = container.read(source.path)
    located = locate_variables(found, selection)
    evidence = None
    if container.evidence is not None:
        progress("reading the graph")
        evidence = container.evidence(source.path, located.parameters)
    recognition = recognise(
        located,
        evidence,
        given,
        stated={**found.stated, **located.stated()},
        published=find_handle(source.provenance["source"]),
    )
    progress("converting weights")
    state_dict = fill(recognition.spec, located)
    provenance = {
        **source.provenance,
        **found.facts,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "tools": _tool_versions(container.needs),
        "assumed": {finding.field: finding.value for finding in recognition.assumed()},
        "weights_sha256": weights_digest(state_dict),
    }
    made_for = published_input(recognition.spec.name)
    if made_for is not None and found.size and set(found.size) != {made_for.size}:
        # For another size of frames than what is published: how they are scaled is not known then.
        side = max(found.size)
        made_for = dataclasses.replace(made_for, size=side, resize=side)
    labels = found.labels if len(found.labels) == recognition.spec.num_classes else None
    checkpoint = Checkpoint(recognition.spec, state_dict, provenance, labels, made_for)
    return Conversion(
        checkpoint=checkpoint,
        findings=recognition.findings,
        era=era(recognition.spec, located.has_short_names(), located.has_later_names()),
        used=tuple(variable.path for variable in located.parameters.values()),
        outside=tuple(variable.path for variable in located.outside),
        averages=located.averages,
        facts=found.facts,
        verification=None,
    )


def fill(spec: ModelSpec, located: Located) -> dict[str, Tensor]:
    """Return the state dict of ``MoViNet(spec)`` from the source's variables.

    Every variable is used once and every parameter and buffer filled once.

    Raises:
        ConversionError: variables are left over or missing, a shape differs, or a value is not
            finite; each is listed.
    """
    with torch.device("meta"):
        expected = MoViNet(spec).state_dict()
    wanted = [name for name in expected if not name.endswith(dialects.NUM_BATCHES_TRACKED)]
    missing = [f"{name} has no variable" for name in wanted if name not in located.parameters]
    extra = [
        f"{variable} fills nothing"
        for name, variable in located.parameters.items()
        if name not in expected
    ]
    shapes = [
        f"{located.parameters[name]} is {found}, expected {tuple(tensor.shape)} for {name}"
        for name, tensor in expected.items()
        if name in located.parameters and (found := located.shape(name)) != tuple(tensor.shape)
    ]
    problems = missing + extra + shapes
    if problems:
        raise ConversionError(
            f"the variables are not those of a MoViNet of these widths: {listing(problems)}"
        )
    size = sum(4 * math.prod(tensor.shape) for tensor in expected.values())
    if size > MOST_BYTES:
        raise ConversionError(
            f"the variables take {size:,} bytes, expected at most {MOST_BYTES:,} for a MoViNet; "
            f"the file is damaged"
        )
    state_dict: dict[str, Tensor] = {}
    for name, tensor in expected.items():
        if name in located.parameters:
            state_dict[name] = _read(name, located)
        else:
            state_dict[name] = torch.zeros((), dtype=tensor.dtype)
    return state_dict


def _read(name: str, located: Located) -> Tensor:
    variable = located.parameters[name]
    value = variable.read()
    if name.endswith(dialects.NUM_BATCHES_TRACKED):
        return torch.from_numpy(np.array(value, dtype=np.int64))
    if value.dtype.kind != "f":
        raise ConversionError(f"variable {variable} is {value.dtype}, expected floating point")
    with np.errstate(over="ignore"):
        value = value.astype(np.float32)
    bad = int(value.size - np.count_nonzero(np.isfinite(value)))
    if bad:
        raise ConversionError(
            f"variable {variable} has {bad} of {value.size} values that are NaN or infinite in "
            f"float32; expected finite ones"
        )
    return torch.from_numpy(np.array(to_torch_layout(located.dialect.layout, name, value)))


def weights_digest(state_dict: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names and values of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        digest.update(name.encode())
        digest.update(state_dict[name].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_given(given: Mapping[str, Any]) -> None:
    fields = {field.name for field in dataclasses.fields(ModelSpec)}
    for name in given:
        if name not in fields:
            raise ConversionError(
                f"{name!r} is no field of a model spec; they are {', '.join(sorted(fields))}"
            )


def _check_identity(spec: ModelSpec, model: str | None, mode: str | None) -> None:
    if model is not None and spec.name != model:
        raise ConversionError(
            f"is {_called(spec)}, expected {model}; leave --model out to convert what is there"
        )
    if mode is not None and spec.mode != mode:
        raise ConversionError(
            f"is a {spec.mode} network, expected {mode}; leave --mode out to convert what is there"
        )


def _called(spec: ModelSpec) -> str:
    widths = ", ".join(str(block.base_filters) for block in spec.blocks)
    return spec.name if spec.name != "custom" else f"a network of other widths ({widths})"


def _tool_versions(packages: Sequence[str]) -> dict[str, str]:
    return {
        "movinet-port": movinet_port.__version__,
        "torch": str(torch.__version__),
        **{package: str(sys.modules[package].__version__) for package in packages},
        "python": platform.python_version(),
    }
