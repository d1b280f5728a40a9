"""Which part of a network learns."""

from __future__ import annotations

from torch import nn

from movinet_port.errors import MovinetPortError
from movinet_port.model import MoViNet

ALL, HEAD = "all", "head"


def freeze(model: MoViNet, train: str | int = ALL) -> None:
    """Let only a part of the network learn.

    Args:
        model: the network; ``requires_grad`` of its parameters is set.
        train: "all"; "head" for the two classifier layers; or a number N for the last N of the
            spec's blocks and everything after them.

    Raises:
        MovinetPortError: it is none of these, or the network has fewer blocks.
    """
    trained = trained_prefixes(model, train)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))


def trained_prefixes(model: MoViNet, train: str | int) -> tuple[str, ...]:
    """Return what the names of the parameters that learn begin with."""
    blocks = len(model.spec.blocks)
    if train == ALL:
        return ("",)
    if train == HEAD:
        return ("classifier.",)
    if not (str(train).isdecimal() and 1 <= int(train) <= blocks):
        raise MovinetPortError(
            f"what is to be trained is {train!r}, expected {ALL!r}, {HEAD!r}, or a number of last "
            f"blocks from 1 to {blocks}"
        )
    last = tuple(f"block{index}_" for index in range(blocks - int(train), blocks))
    return (*last, "head.", "classifier.")


def set_training_mode(model: MoViNet, *, freeze_norms: bool = False) -> None:
    """Put the network into training mode, but what does not learn stays as in evaluation.

    A frozen part neither drops anything nor moves its batch statistics.

    Args:
        model: the network, after `freeze`.
        freeze_norms: keep all batch statistics, also where the network learns: for batches too
            small to estimate them from.
    """
    model.train()
    for _, module in model.named_modules():
        parameters = list(module.parameters())
        frozen = bool(parameters) and not any(p.requires_grad for p in parameters)
        if frozen or (freeze_norms and isinstance(module, nn.modules.batchnorm._BatchNorm)):
            module.eval()
