"""An optimised network as parity sees it: a module per activation that its algebra leaves.

What the algebra folds away (normalisations, ReZero, a projection's output) has no counterpart to
compare; `Optimised.folded` declares it, so that nothing is left out silently.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from movinet_port.fast import FastMoViNet, InferenceNetwork
from movinet_port.fast.state import StreamState
from movinet_port.streams import StatefulNetwork
from movinet_port.wiring import FOLDED, INPUT, MEANS, wiring
from parity.errors import ComparisonError

_LOGITS = "classifier"
_HEAD_POOL = "pool"


class _Tap(nn.Module):
    """Hands on what it gets, for hooks to see and replace; holds the taps below its name."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x


class Sum(nn.Module):
    """Hands on means or sums over so many values, for hooks to see and replace."""

    def forward(self, x: Tensor, summands: int) -> Tensor:
        """Return `x`."""
        return x


class Optimised(StatefulNetwork):
    """Runs an optimised network, each activation through the module of its name.

    Args:
        network: the optimised network; one that is compiled shows its logits and states only.
        exact: the same network at level "eager", to measure what rounding does; by default
            `network`, which then must be of that level.
    """

    def __init__(self, network: InferenceNetwork, exact: FastMoViNet | None = None) -> None:
        super().__init__()
        if exact is None:
            if not isinstance(network, FastMoViNet):
                raise ComparisonError(
                    "rounding of a compiled network is measured on its eager one, which is missing"
                )
            exact = network
        self.spec = network.spec
        self._nodes = {tap: node for tap, node in wiring(self.spec).items() if tap != INPUT}
        kept = [tap for tap, node in self._nodes.items() if node.operation not in FOLDED]
        self.taps = tuple(kept) if isinstance(network, FastMoViNet) else (_LOGITS,)
        self.folded = tuple(tap for tap in self._nodes if tap not in self.taps)
        # Pools are always watched: their rounding is a part of the floor.
        self._placed = {tap for tap in kept if tap in self.taps or self._is_mean(tap)}
        for tap in self._placed:
            self._place(tap)
        self.pool_buffers = Sum()
        # Not submodules: what casts this module's tensors must not reach into them.
        self._networks = {network.dtype: network}
        self._exact = exact
        self._current = network.dtype
        self.restore(network.snapshot())

    def _is_mean(self, tap: str) -> bool:
        return self._nodes[tap].operation in MEANS

    def _place(self, tap: str) -> None:
        module: nn.Module = self
        *path, leaf = tap.split(".")
        for name in path:
            if name not in module._modules:
                module.add_module(name, _Tap())
            module = module.get_submodule(name)
        if leaf not in module._modules:
            module.add_module(leaf, Sum() if self._is_mean(tap) else _Tap())

    @property
    def dtype(self) -> torch.dtype:
        """The type it computes in."""
        return self._current

    def forward(self, video: Tensor) -> Tensor:
        """Return logits, and remember the video in a stream network."""
        if self._current not in self._networks:
            self._networks[self._current] = copy.deepcopy(self._exact).to(self._current)
        network = self._networks[self._current]
        shape = network.check(video)
        state = None
        if self.spec.causal:
            state = StreamState.of(self._so_far(video, shape), network.dtype)
        # The logits of the fast path that users run; a second, watched run gives the activations.
        logits, after = network.run(video, state)
        replaced = False
        summands = 1
        summed: dict[str, int] = {}  # layer, or "head"

        def tap(name: str, value: Tensor) -> Tensor:
            nonlocal replaced, summands
            found = value
            if self._is_mean(name):
                owner = "head" if name == _HEAD_POOL else name.partition(".")[0]
                summed.setdefault(owner, summands)
                found = self.get_submodule(name)(value, summands)
            elif name in self._placed:
                x = logits if name == _LOGITS and not replaced else value
                found = self.get_submodule(name)(x)
            replaced = replaced or (found is not value and name != _LOGITS)
            # The activation shown just before a pool is the pool's input.
            summands = value[0, 0].numel()
            return found

        if isinstance(network, FastMoViNet):
            watched, watched_after = network.run(video, state, tap)
            if replaced:
                logits, after = watched, watched_after
            if replaced and after is not None:
                pools = {n: self.pool_buffers(x, summed[n]) for n, x in after.pools.items()}
                after = dataclasses.replace(after, pools=pools)
        else:
            logits = self.get_submodule(_LOGITS)(logits.clone())
        self._stream = None if after is None else (shape, after.public())
        return logits

    @contextlib.contextmanager
    def computing_in(self, dtype: torch.dtype | None) -> Iterator[None]:
        """Compute in another type; the state is put back at the end."""
        current, before = self._current, self.snapshot()
        self._current = dtype or current
        try:
            yield
        finally:
            self._current = current
            self.restore(before)
