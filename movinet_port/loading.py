"""From a file or a name to a network: `load` and `create_model`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, overload

from movinet_port.checkpoint import PACKAGE, Checkpoint, load_checkpoint
from movinet_port.errors import CheckpointError, SpecError
from movinet_port.fast import InferenceNetwork
from movinet_port.fast import optimize as optimized
from movinet_port.labels import LabelsError
from movinet_port.model import MoViNet
from movinet_port.variants import get_spec


@overload
def load(path: str | os.PathLike[str]) -> MoViNet: ...


@overload
def load(path: str | os.PathLike[str], optimize: str | None) -> MoViNet | InferenceNetwork: ...


def load(path: str | os.PathLike[str], optimize: str | None = None) -> MoViNet | InferenceNetwork:
    """Return the network of a checkpoint file, in eval mode, on the CPU.

    A ``.pt2`` file, which 'movinet-port compile' made, is native code and is run by loading it:
    it must come from where programs may come from (see `movinet_port.fast.aot`). Any other file
    holds data and nothing in it is executed.

    Args:
        path: of the file.
        optimize: a level of `movinet_port.optimize`; None for the readable network. A ``.pt2``
            file is optimised already: None or "aot".

    Raises:
        CheckpointError: the file is missing, damaged, no checkpoint of movinet-port, or its
            weights do not fit its spec; or a ``.pt2`` file was made for another machine.
        SpecError: there is no such level.
    """
    if Path(path).suffix == PACKAGE and Path(path).is_file():
        from movinet_port.fast.aot import load_package

        if optimize not in (None, "aot"):
            raise SpecError(f"{path} is compiled already; it cannot be optimised to {optimize!r}")
        return load_package(path)
    model = build_from(path, load_checkpoint(path))
    return model if optimize is None else optimized(model, optimize)


def build_from(path: str | os.PathLike[str], checkpoint: Checkpoint) -> MoViNet:
    """Return the network of a checkpoint that was read from `path`, in eval mode.

    Raises:
        CheckpointError: what is in the file does not fit together; the message names the file.
    """
    try:
        return checkpoint.build()
    except (CheckpointError, LabelsError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def create_model(
    name: str,
    mode: str = "base",
    num_classes: int | None = None,
    *,
    pretrained: str | os.PathLike[str] | bool = False,
    dropout: float = 0.2,
    stochastic_depth: float = 0.2,
    **overrides: Any,
) -> MoViNet:
    """Build a member of the family: with random weights, in training mode; or pretrained, in eval.

    Args:
        name: "a0" to "a5", or "t0"; `list_models` lists them.
        mode: "base" or "stream".
        num_classes: number of logits; by default 600, or what the pretrained file has. If that
            has another number, its last layer is replaced by a new one.
        pretrained: a converted file; or True for the one of this network in the cache folder, as
            `movinet_port.pretrained` describes it.
        dropout, stochastic_depth: rates in training, as in `MoViNet`.
        **overrides: any other field of `ModelSpec`.

    Raises:
        SpecError: unknown name, mode or field, or values that make no MoViNet.
        CheckpointError: the file cannot be read, or holds another network.
    """
    if pretrained is not False:
        from movinet_port.pretrained import load_pretrained

        model = load_pretrained(name, mode, None if pretrained is True else pretrained, overrides)
        model.set_drop_rates(dropout, stochastic_depth)
        if num_classes not in (None, model.spec.num_classes):
            model.reset_classifier(num_classes)
        return model
    spec = get_spec(name, mode, 600 if num_classes is None else num_classes, **overrides)
    return MoViNet(spec, dropout=dropout, stochastic_depth=stochastic_depth)
