"""What a fault is, and how one is put into a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from movinet_port import MoViNet

Apply: TypeAlias = Callable[[MoViNet], nn.Module]
TensorEdit: TypeAlias = Callable[[Tensor], Tensor]
# (module, its right forward, its arguments) -> its output.
Forward: TypeAlias = Callable[..., Any]

UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        cause: what it is, for the table.
        places: where it should be found; each is one tap, or several of which one is enough.
        detail: for the list.
        apply: changes a network, and returns what to run in its place.
        accepts: causes that are true of it, by default `cause` alone.
        alone: whether it cannot be combined with others.
    """

    cause: str
    places: tuple[tuple[str, ...], ...]
    detail: str
    apply: Apply
    accepts: frozenset[str] = frozenset()
    alone: bool = False

    @property
    def true_causes(self) -> frozenset[str]:
        """Return what may be said of it."""
        return self.accepts or frozenset((self.cause,))

    @property
    def layer(self) -> str:
        """Return the first place."""
        return self.places[0][0]


def at(*taps: str) -> tuple[tuple[str, ...], ...]:
    """Return places, all of which should be named."""
    return tuple((tap,) for tap in taps)


# How a fault is put in


def edit(parameter: str, change: TensorEdit) -> Apply:
    """Change a parameter or buffer in place."""

    def apply(network: MoViNet) -> nn.Module:
        owner, _, leaf = parameter.rpartition(".")
        tensor = getattr(network.get_submodule(owner), leaf)
        with torch.no_grad():
            tensor.copy_(change(tensor.detach().clone()).reshape(tensor.shape))
        return network

    return apply


def exchange(first: str, second: str) -> Apply:
    """Exchange two parameters of one shape."""

    def apply(network: MoViNet) -> nn.Module:
        state = network.state_dict()
        with torch.no_grad():
            a, b = state[first].clone(), state[second].clone()
            state[first].copy_(b)
            state[second].copy_(a)
        return network

    return apply


def copied(source: str, target: str) -> Apply:
    """Load one parameter into another of its shape."""

    def apply(network: MoViNet) -> nn.Module:
        state = network.state_dict()
        with torch.no_grad():
            state[target].copy_(state[source])
        return network

    return apply


def patch(path: str, forward: Forward) -> Apply:
    """Give a module another forward, which gets the module and its right one first."""

    def apply(network: MoViNet) -> nn.Module:
        module = network.get_submodule(path)
        right = module.forward
        module.forward = lambda *args: forward(module, right, *args)
        return network

    return apply


def change(path: str, action: Callable[[Any], Any]) -> Apply:
    """Do something to a module."""

    def apply(network: MoViNet) -> nn.Module:
        with torch.no_grad():
            action(network.get_submodule(path))
        return network

    return apply


def in_place_of(path: str, kind: Callable[[], nn.Module]) -> Apply:
    """Put another module in."""

    def apply(network: MoViNet) -> nn.Module:
        owner, _, leaf = path.rpartition(".")
        setattr(network.get_submodule(owner), leaf, kind())
        return network

    return apply


def in_turn(*steps: Apply) -> Apply:
    """Put several faults in."""

    def apply(network: MoViNet) -> nn.Module:
        for step in steps:
            step(network)
        return network

    return apply


def random_like(tensor: Tensor, seed: int = 0) -> Tensor:
    """Return normally distributed numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tensor.shape, generator=generator).to(tensor)


class Around(nn.Module):
    """Whatever stands between the reader of the video and the network."""

    def __init__(self, network: MoViNet, call: Callable[[MoViNet, Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.call = call

    def forward(self, video: Tensor) -> Tensor:
        """Return logits."""
        return self.call(self.network, video)


# (batch, channels, frames, height, width) of the clip, which a stale state must fit.
SHAPE = [2, 3, 6, 44, 44]
