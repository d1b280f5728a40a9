"""What recognising a network asks of a source's computation."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from movinet_port.spec import Triple


@dataclasses.dataclass(frozen=True)
class Statement:
    """Something that was read off the graph, and the node that says so."""

    value: str
    node: str


@dataclasses.dataclass(frozen=True)
class ConvolutionEvidence:
    """How the graph uses one kernel."""

    node: str
    strides: Triple
    causal: bool
    paddings: frozenset[str]  # which of "same" and "legacy" it may be: at stride 1, both


class Evidence(Protocol):
    """Answers questions about the operations around a parameter of the network.

    Whatever is no MoViNet's raises `ConversionError`.
    """

    def convolution(self, parameter: str, kernel_size: Triple) -> ConvolutionEvidence:
        """Return how the convolution with this weight strides and pads."""
        ...

    def activation(self, parameter: str) -> Statement:
        """Return the activation behind the bias or batch normalisation offset `parameter`."""
        ...

    def gate(self, parameter: str) -> Statement:
        """Return the gate behind the bias `parameter`."""
        ...

    def epsilon(self, parameter: str) -> float:
        """Return what the batch normalisation adds to the variance `parameter`."""
        ...

    def pooled_over_time(self, parameter: str) -> Statement:
        """Return whether what reaches a convolution was pooled over frames: "time" or "space"."""
        ...

    def average_pool(self, parameter: str) -> str | None:
        """Check the pool in front of a convolution; return its node, if there is one."""
        ...
