"""From the readable network to a fast one, at one of several levels."""

from __future__ import annotations

import torch

from movinet_port.errors import SpecError, nearest
from movinet_port.fast.fold import fold, turned
from movinet_port.fast.network import FastMoViNet, InferenceNetwork
from movinet_port.model import MoViNet

LEVELS = ("eager", "compile")


def optimize(
    model: MoViNet,
    level: str = "eager",
    *,
    dtype: torch.dtype | None = None,
    quantize: str | None = None,
) -> InferenceNetwork:
    """Return a network for inference with the outputs of `model` within rounding.

    Whatever mode `model` is in, what is optimised is what ``model.eval()`` computes: running
    statistics, no dropout. The result has no gradients, shares no memory with `model` and does not
    follow it when it is trained on.

    Args:
        model: the readable network; it is not changed.
        level: "eager" takes any batch, size and number of frames, and compiles nothing.
            "compile" is `torch.compile`: it needs a C++ compiler, and half a minute or more for
            every new shape of clip that it meets. The third level, compiled ahead of time for one
            shape, is a file: 'movinet-port compile', or
            `movinet_port.fast.aot.compile_package`, writes it and `movinet_port.load` reads it.
        dtype: to compute in; by default that of `model`. `torch.bfloat16` is never chosen
            silently: it changes the logits, see `movinet_port.fast.agreement`.
        quantize: "int8" for 8-bit 1 x 1 convolutions on the CPU, level "eager" only; it changes
            the logits too. None, the default, for none.

    Returns:
        A network with the call signature of `MoViNet`: ``model(clip)`` and
        ``clean_activation_buffers``, ``step``, ``init_state``, ``state_shapes``, ``spec``,
        ``labels``. Its states and the readable network's are the same.

    Raises:
        SpecError: there is no such level or quantisation, or the model has no weights.
    """
    if level == "aot":
        raise SpecError(
            "level 'aot' is compiled for one shape of clip and written to a file; use "
            "'movinet-port compile', then movinet_port.load(file)"
        )
    if level not in LEVELS:
        raise SpecError(
            f"level is {level!r}, expected one of {', '.join(LEVELS)}{nearest(level, LEVELS)}"
        )
    if not isinstance(model, MoViNet):
        raise SpecError(f"optimize expects a MoViNet, found {type(model).__name__}")
    if quantize not in (None, "int8"):
        raise SpecError(f"quantize is {quantize!r}, expected 'int8' or None")
    network = fold_network(model, dtype, turn=level == "eager")
    if quantize is not None:
        if level != "eager":
            raise SpecError(f"quantize='int8' is for level 'eager', found level {level!r}")
        network.quantise()
    if level == "eager":
        return network
    from movinet_port.fast.graph import compile_graph

    return compile_graph(network)


def fold_network(
    model: MoViNet, dtype: torch.dtype | None = None, *, turn: bool = True
) -> FastMoViNet:
    """Return the network of level "eager"; see `optimize`.

    Args:
        model: the readable network.
        dtype: to compute in; by default that of `model`.
        turn: whether a base network computes turned frames, see `movinet_port.fast.fold.turned`. A
            compiler pads as it likes, and turning would cost it.
    """
    folded = fold(model)
    network = FastMoViNet(turned(folded) if turn else folded, model.labels)
    return network.to(dtype or model.stem.conv.weight.dtype)
