"""The table of activations, against what the network and the optimised network really do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from movinet_port import MoViNet, StemSpec
from movinet_port.fast import optimize
from movinet_port.fast.state import StreamState
from movinet_port.layers import Bottleneck, Classifier, SqueezeExcitation
from movinet_port.wiring import FOLDED, INPUT, wiring

SPECS: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("base", {}),
    "base, (2+1)D, frames pooled": ("base", {"conv_type": "2plus1d", "se_type": "2d"}),
    "base, both pooled": ("base", {"se_type": "2plus3d"}),
    "base, no gate": ("base", {"se_type": "none"}),
    "base, stem over frames": ("base", {"stem": StemSpec(8, (3, 3, 3))}),
    "stream": ("stream", {}),
    "stream, positions": ("stream", {"positional_encoding": True}),
    "stream, 3-D": ("stream", {"conv_type": "3d"}),
    "stream, clip pooled": ("stream", {"se_type": "3d"}),
    "stream, frames pooled": ("stream", {"se_type": "2d", "positional_encoding": True}),
    "stream, stem over frames": ("stream", {"stem": StemSpec(8, (3, 3, 3))}),
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=SPECS)
def network(request: pytest.FixtureRequest, mini_spec: Callable[..., Any]) -> MoViNet:
    mode, changes = SPECS[request.param]
    torch.manual_seed(0)
    spec = mini_spec(mode, **changes)
    # Every kind of layer once: with a pool, with a projection alone, with neither.
    first, _, second, third, _ = spec.blocks
    model = MoViNet(spec.replace(blocks=(first, second, third))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def modules_with_an_activation(model: MoViNet) -> set[str]:
    """The modules that compute: those without modules inside, and those that combine others'."""
    return {
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] not in ("stochastic_depth", "dropout")
        and (
            isinstance(module, (Bottleneck, SqueezeExcitation, Classifier))
            or not any(module.children())
        )
    }


@contextmanager
def replaced(model: MoViNet, values: Mapping[str, Tensor], found: dict[str, Tensor]) -> Iterator:
    """Keep what each module computes, and hand on a value in its place where there is one."""

    def see(name: str, output: Any) -> Any:
        value, *more = output if isinstance(output, tuple) else (output,)
        found[name] = value
        value = values.get(name, value)
        return (value, *more) if isinstance(output, tuple) else value

    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: see(name, output)
        )
        for name in modules_with_an_activation(model)
    ]
    # The stem's first argument: `step` runs no hooks of the network itself.
    handles.append(
        model.stem.register_forward_pre_hook(lambda module, args: (see(INPUT, args[0]), *args[1:]))
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Runs:
    """A network on one clip, every activation replaced by what it is, but for one change."""

    def __init__(self, model: MoViNet) -> None:
        self.model = model
        self.clip = torch.rand(1, 3, 3, 18, 20)
        self.state: dict[str, Tensor] = {}
        if model.spec.causal:
            state = model.init_state(1, 18, 20)
            self.state = model.step(torch.rand(1, 3, 3, 18, 20), state)[1]
        self.right: dict[str, Tensor] = {}
        self.after = self.run({}, self.state, self.right)

    @torch.no_grad()
    def run(
        self, values: Mapping[str, Tensor], state: dict[str, Tensor], found: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the state after the clip."""
        with replaced(self.model, values, found):
            if self.model.spec.causal:
                return self.model.step(self.clip, state)[1]
            self.model(self.clip)
            return {}

    def moved(
        self, activation: str = "", before: Mapping[str, Tensor] | None = None
    ) -> tuple[set[str], set[str]]:
        """The activations and the states after the clip that one change changes at once."""
        values = dict(self.right)
        if activation:
            values[activation] = values[activation] + torch.rand_like(values[activation])
        found: dict[str, Tensor] = {}
        after = self.run(values, {**self.state, **(before or {})}, found)
        return (
            {name for name, value in found.items() if not torch.equal(value, self.right[name])},
            {name for name, value in after.items() if not torch.equal(value, self.after[name])},
        )


def test_every_activation_of_the_network_is_in_the_table(network: MoViNet) -> None:
    assert wiring(network.spec).keys() == {INPUT} | modules_with_an_activation(network)


def test_activations_are_in_an_order_of_computation(network: MoViNet) -> None:
    seen: set[str] = set()
    for name, node in wiring(network.spec).items():
        assert seen.issuperset(node.sources), name
        seen.add(name)


def test_what_an_activation_changes_is_what_is_computed_from_it(network: MoViNet) -> None:
    table = wiring(network.spec)
    runs = Runs(network)
    for name in table:
        users = {user for user, node in table.items() if name in node.sources}
        written = {
            state for user in users for state in table[user].states if state.endswith("_buffer")
        }
        assert runs.moved(name) == (users, written), name


def test_what_a_state_changes_is_what_reads_it(network: MoViNet) -> None:
    runs = Runs(network)
    readers: dict[str, set[str]] = {}
    for name, node in wiring(network.spec).items():
        for state in node.states:
            readers.setdefault(state, set()).add(name)
    assert readers.keys() == runs.state.keys()
    for state, value in runs.state.items():
        change = torch.ones_like(value)
        assert runs.moved(before={state: value + change})[0] == readers[state], state


def test_several_sources_reach_a_convolution_in_their_order(network: MoViNet) -> None:
    right = Runs(network).right
    for name, node in wiring(network.spec).items():
        if node.operation == "conv" and len(node.sources) > 1:
            frames = max(right[source].shape[2] for source in node.sources)
            parts = [right[source].expand(-1, -1, frames, -1, -1) for source in node.sources]
            module = network.get_submodule(name)
            assert isinstance(module, nn.Conv3d)
            with torch.no_grad():
                torch.testing.assert_close(module(torch.cat(parts, dim=1)), right[name])


def test_an_optimised_network_shows_what_it_does_not_fold(network: MoViNet) -> None:
    seen = []

    def tap(name: str, value: Tensor) -> Tensor:
        seen.append(name)
        return value

    fast = optimize(network)
    state = network.init_state(1, 18, 20) if network.spec.causal else None
    clip = torch.rand(1, 3, 3, 18, 20)
    fast.run(clip, None if state is None else StreamState.of(state), tap)
    kept = [n for n, node in wiring(network.spec).items() if node.operation not in FOLDED]
    assert sorted(seen) == sorted(set(kept) - {INPUT})
