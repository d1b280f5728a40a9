"""An optimised network as parity sees it: a module per activation that its algebra leaves.

What the algebra folds away (normalisations, ReZero, a projection's output) has no counterpart to
compare; `Optimised.folded` declares it, so that nothing is left out silently.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from movinet_port.fast import FastMoViNet, InferenceNetwork, hold
from movinet_port.model import MoViNet, State
from parity.errors import ComparisonError

_LOGITS = "classifier"


class _Tap(nn.Module):
    """Hands on what it gets, for hooks to see and replace; holds the taps below its name."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x


class Optimised(nn.Module):
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
        with torch.device("meta"):
            readable = MoViNet(self.spec)
        from parity.taps import INPUT, model_taps

        eager = isinstance(network, FastMoViNet)
        self.taps = tuple(exact.taps()) if eager else (_LOGITS,)
        there = model_taps(readable)
        unknown = set(self.taps) - set(there)
        assert not unknown, unknown
        self.folded = tuple(tap for tap in there if tap not in self.taps and tap != INPUT)
        for tap in self.taps:
            self._place(tap)
        # Not submodules: what casts this module's tensors must not reach into them.
        self._networks = {network.dtype: network}
        self._exact = exact
        self._current = network.dtype
        self._state: State | None = None
        self._stream_shape: tuple[int, int, int] | None = None
        if network._held is not None:
            self._state, self._stream_shape = network._held.public(), network._stream_shape

    def _place(self, tap: str) -> None:
        module: nn.Module = self
        for name in tap.split("."):
            if name not in module._modules:
                module.add_module(name, _Tap())
            module = module.get_submodule(name)

    @property
    def dtype(self) -> torch.dtype:
        """The type it computes in."""
        return self._current

    def init_state(self, batch: int, height: int, width: int) -> State:
        """Return the state before the first frame."""
        return self._exact.init_state(batch, height, width)

    def forward(self, video: Tensor) -> Tensor:
        """Return logits, and remember the video in a stream network."""
        if self._current not in self._networks:
            self._networks[self._current] = copy.deepcopy(self._exact).to(self._current)
        network = self._networks[self._current]
        shape = network.check(video)
        state = None
        if self.spec.causal:
            if self._state is None:
                self._state = network.init_state(*shape)
            state = hold(self._state, network.dtype)
        # As it is used. The activations come from a run that keeps them whole.
        logits, after = network.run(video, state)
        replaced = False

        def tap(name: str, value: Tensor) -> Tensor:
            nonlocal replaced
            found = self.get_submodule(name)(logits if name == _LOGITS and not replaced else value)
            replaced = replaced or (found is not value and name != _LOGITS)
            return found

        if _LOGITS in self.taps and len(self.taps) == 1:
            logits = self.get_submodule(_LOGITS)(logits.clone())
        else:
            assert isinstance(network, FastMoViNet)
            watched, watched_after = network.run(video, state, tap)
            if replaced:
                logits, after = watched, watched_after
        self._stream_shape = shape
        self._state = None if after is None else after.public()
        return logits

    @contextlib.contextmanager
    def computing_in(self, dtype: torch.dtype | None) -> Iterator[None]:
        """Compute in another type; the state is put back at the end."""
        current, state, shape = self._current, self._state, self._stream_shape
        self._current = dtype or current
        try:
            yield
        finally:
            self._current, self._state, self._stream_shape = current, state, shape
