"""Running a PyTorch network with its named activations watched, and replaced where asked.

Replacing is what tells who introduces an error: when every watched module's output is replaced
by the reference's, each module, and whatever is computed between two of them, sees the
reference's own values.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from movinet_port.errors import nearest
from movinet_port.layers import ClipPool, CumulativePool, SpatialPool
from movinet_port.model import MoViNet
from movinet_port.streams import Snapshot
from movinet_port.wiring import INPUT, wiring
from parity.chunk_values import Array, ChunkValues
from parity.errors import ComparisonError
from parity.optimised import Optimised, Sum

# Modules whose every result is a mean over a clip or a frame.
_POOLS = (
    ClipPool,
    CumulativePool,
    SpatialPool,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    Sum,
)

# Called with (chunk, tap, value) for each watched value, in the order of computation.
Watch: TypeAlias = Callable[[int, str, Tensor], None]


@dataclasses.dataclass
class Recorded:
    """What one chunk gave: tap -> value, stream state -> value."""

    activations: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    states: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class ComparedModel:
    """A PyTorch network and where its taps are.

    Args:
        model: a MoViNet, a module that contains one, or any module together with a table.
        table: tap -> path of the module; the one of `movinet_port.wiring.INPUT` is given the
            input as its first argument, by default the model itself.

    Raises:
        ComparisonError: the table names a module that is not there.
    """

    def __init__(self, model: nn.Module, table: Mapping[str, str] | None = None) -> None:
        self.model = model
        self.table = default_table(model) if table is None else {INPUT: "", **table}
        known = dict(model.named_modules())
        for tap, path in self.table.items():
            if path not in known:
                raise ComparisonError(
                    f"the table pairs {tap!r} with the module {path!r}, which "
                    f"{type(model).__name__} does not have{nearest(path, known)}"
                )
        self.modules: dict[str, nn.Module] = {tap: known[p] for tap, p in self.table.items()}
        found = find_network(model)
        self.prefix = found[0] if found else ""
        self.network: MoViNet | Optimised | None = found[1] if found else None
        # What the network remembers when we get it. It should remember nothing.
        self.initial: dict[str, Tensor] = {}
        if self.network is not None and (before := self.network.snapshot()) is not None:
            self.initial = {k: v.clone() for k, v in before.state.items()}

    @property
    def causal(self) -> bool:
        """Whether the network carries state from chunk to chunk."""
        return self.network is not None and self.network.spec.causal

    @property
    def dtype(self) -> torch.dtype:
        """The type of the network's first floating-point parameter."""
        if isinstance(self.network, Optimised):
            return self.network.dtype
        return next(
            (p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32
        )

    @property
    def folded(self) -> tuple[str, ...]:
        """Taps of a MoViNet that an optimised one no longer has."""
        return self.network.folded if isinstance(self.network, Optimised) else ()

    def parameters(self) -> dict[str, Tensor]:
        """Return parameters and buffers, under the names that the taps' modules have."""
        prefix = f"{self.prefix}." if self.prefix else ""
        return {
            name.removeprefix(prefix): value
            for name, value in self.model.state_dict().items()
            if name.startswith(prefix)
        }

    def path(self, tap: str) -> str:
        """Return the path of a tap's module, as `parameters` spells it."""
        prefix = f"{self.prefix}." if self.prefix else ""
        return self.table[tap].removeprefix(prefix)

    def run(
        self,
        chunks: Sequence[Array],
        *,
        dtype: torch.dtype | None = None,
        replacements: Sequence[ChunkValues] | None = None,
        watch: Watch | None = None,
        summing: float = 0.0,
    ) -> list[Recorded]:
        """Run the network on a video, from the state it has, and leave it as it was.

        Args:
            chunks: each (batch, channels, frames, height, width).
            dtype: to compute in; None for the network as it is.
            replacements: a reference's values for each chunk, to put in the place of each tap's
                and of the states that the chunk before left. A video's beginning is the network's
                own business.
            watch: called with each value before it is replaced; without it, values are kept.
            summing: noise to add to each mean over a clip, as a share of its root mean square
                for each root of the number of summands.

        Returns:
            For each chunk the states after it and, without `watch`, the activations.
        """
        recorded: list[Recorded] = []
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
            self._as(dtype),
            self._noisy_sums(summing),
        ):
            torch.manual_seed(0)
            clip_type = self.dtype
            for number, chunk in enumerate(chunks):
                values = None if replacements is None else replacements[number]
                if replacements is not None and number > 0:
                    self._set_states(replacements[number - 1].states, chunk)
                record = Recorded()
                recorded.append(record)
                keep = record.activations
                with self._watched(number, keep, values, watch):
                    self.model(torch.from_numpy(np.ascontiguousarray(chunk)).to(clip_type))
                if self.network is not None and (after := self.network.snapshot()) is not None:
                    record.states = {k: v.clone() for k, v in after.state.items()}
        return recorded

    def capture(
        self, chunks: Sequence[Array], replacements: Sequence[ChunkValues], taps: frozenset[str]
    ) -> dict[str, list[tuple[tuple[Any, ...], Any]]]:
        """Return (arguments, result) of some taps' modules for each chunk, on replacements."""
        captured: dict[str, list[tuple[tuple[Any, ...], Any]]] = {tap: [] for tap in taps}

        with contextlib.ExitStack() as hooks:
            for tap, kept in captured.items():
                hooks.enter_context(
                    self.modules[tap].register_forward_hook(
                        lambda module, args, output, kept=kept: kept.append((args, output))
                    )
                )
            self.run(chunks, replacements=replacements, watch=lambda *_: None)
        return captured

    @contextlib.contextmanager
    def _watched(
        self,
        number: int,
        keep: dict[str, Tensor],
        replacements: ChunkValues | None,
        watch: Watch | None,
    ) -> Iterator[None]:
        seen: set[str] = set()

        def see(tap: str, value: Tensor) -> Tensor | None:
            if tap in seen:
                raise ComparisonError(
                    f"the module {self.table[tap]!r} runs more than once for one clip, so that "
                    f"the tap {tap!r} is not one activation; leave it out of the table"
                )
            seen.add(tap)
            if watch is not None:
                watch(number, tap, value.detach())
            else:
                keep[tap] = value.detach().clone()
            if replacements is None:
                return None
            return torch.from_numpy(replacements.activations[tap]).to(value.dtype)

        def after(tap: str) -> Callable[..., Any]:
            def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
                if isinstance(output, (tuple, list)):
                    replaced = see(tap, output[0])
                    return None if replaced is None else type(output)((replaced, *output[1:]))
                return see(tap, output)

            return hook

        def before(module: nn.Module, args: tuple[Any, ...]) -> Any:
            replaced = see(INPUT, args[0])
            return None if replaced is None else (replaced, *args[1:])

        with contextlib.ExitStack() as hooks:
            for tap, module in self.modules.items():
                hooks.enter_context(
                    module.register_forward_pre_hook(before)
                    if tap == INPUT
                    else module.register_forward_hook(after(tap))
                )
            yield

    @contextlib.contextmanager
    def _noisy_sums(self, share: float) -> Iterator[None]:
        """Add to what pools compute the noise of another order of summation."""
        generator = torch.Generator().manual_seed(0)

        def noisy(value: Tensor, summands: float) -> Tensor:
            size = share * summands**0.5 * value.square().mean().sqrt()
            return value + size * torch.randn(
                value.shape, generator=generator, dtype=value.dtype
            ).to(value.device)

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            summands = args[1] if isinstance(module, Sum) else args[0][0, 0].numel()
            if isinstance(output, tuple):
                # A pool's second result is the sum that it carries on.
                return tuple(noisy(value, summands) for value in output)
            return noisy(output, summands)

        pools = [m for m in self.model.modules() if share and isinstance(m, _POOLS)]
        with contextlib.ExitStack() as hooks:
            for module in pools:
                hooks.enter_context(module.register_forward_hook(hook))
            yield

    def _set_states(self, states: Mapping[str, Array], chunk: Array) -> None:
        if self.network is None or not states:
            return
        shape = (chunk.shape[0], chunk.shape[3], chunk.shape[4])
        state = {
            name: torch.from_numpy(states[name]).to(value.dtype)
            for name, value in self.network.init_state(*shape).items()
        }
        self.network.restore(Snapshot(state, shape))

    @contextlib.contextmanager
    def _as(self, dtype: torch.dtype | None) -> Iterator[None]:
        """Compute in `dtype`; parameters, statistics and states are put back at the end."""
        if isinstance(self.network, Optimised):
            with self.network.computing_in(dtype):
                yield
            return

        def cast(value: Tensor) -> Tensor:
            return value.to(dtype) if dtype is not None and value.is_floating_point() else value

        parameters = [(p, p.data) for p in self.model.parameters()]
        buffers = [
            (module, name, buffer)
            for module in self.model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        network = self.network
        before = None if network is None else network.snapshot()
        try:
            for parameter, data in parameters:
                parameter.data = cast(data)
            for module, name, buffer in buffers:
                # In training mode a normalisation writes to its statistics.
                module._buffers[name] = cast(buffer.clone())
            if network is not None and before is not None:
                state = {name: cast(value) for name, value in before.state.items()}
                network.restore(Snapshot(state, before.shape))
            yield
        finally:
            for parameter, data in parameters:
                parameter.data = data
            for module, name, buffer in buffers:
                module._buffers[name] = buffer
            if network is not None:
                network.restore(before)


def find_network(model: nn.Module) -> tuple[str, MoViNet | Optimised] | None:
    """Return (path, network) of the one MoViNet that `model` is or contains, or None."""
    kinds = (MoViNet, Optimised)
    found = [(path, m) for path, m in model.named_modules() if isinstance(m, kinds)]
    if len(found) > 1:
        raise ComparisonError(
            f"the model contains {len(found)} MoViNets ({', '.join(path for path, _ in found)}); "
            f"compare one at a time"
        )
    return found[0] if found else None


def default_table(model: nn.Module) -> dict[str, str]:
    """Return tap -> path of the module in `model`, of the MoViNet that it is or contains.

    Raises:
        ComparisonError: there is none, so that the pairing must be given.
    """
    found = find_network(model)
    if found is None:
        raise ComparisonError(
            f"{type(model).__name__} is no MoViNet and contains none: give a table of the "
            f"reference's names and the model's modules"
        )
    prefix, network = found
    taps = network.taps if isinstance(network, Optimised) else wiring(network.spec)
    paths = {tap: f"{prefix}.{tap}".strip(".") for tap in taps if tap != INPUT}
    # A module that was taken out has no tap; the comparison then names the missing partner.
    there = dict(model.named_modules())
    return {INPUT: prefix, **{tap: path for tap, path in paths.items() if path in there}}
