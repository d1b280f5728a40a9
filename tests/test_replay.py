"""Operations that are recorded once and run again by PyTorch's own interpreter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from movinet_port import MoViNet, optimize
from movinet_port.fast.frame import FramePlan
from movinet_port.fast.network import FastMoViNet
from movinet_port.fast.replay import TensorFunction, record


class Everything:
    """A function with every kind of operation and argument that frames have."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.rand(6, 4, generator=generator)
        self.memory = torch.zeros(3, 6)
        self.rows, self.starts = torch.tensor([0, 1, 3, 5]), torch.tensor([0, 2])
        self.calls = 0

    def __call__(self, x: Tensor, y: Tensor) -> list[Tensor]:
        self.calls += 1
        torch.mm(x, self.weight.t(), out=self.memory)
        view = self.memory[:, 2:4]
        view.mul_(2).clamp_(0.0, 1.5)
        bags = F.embedding_bag(self.rows, self.weight, self.starts, mode="sum")
        high, low = torch.aminmax(y)
        planes = F.avg_pool2d(y.view(1, 3, 2, 2), 2, ceil_mode=True, count_include_pad=False)
        total = torch.add(y, planes.flatten()[:, None], alpha=0.25)
        return [self.memory.clone(), bags * low, high[None], total.sum((0, 1), keepdim=True)]


def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


@torch.inference_mode()
def test_what_is_recorded_does_the_same_with_other_inputs() -> None:
    function, untouched = Everything(), Everything()
    inputs = torch.rand(3, 4), torch.rand(3, 4)
    found, again = record(function, inputs)
    assert same(found, untouched(*inputs))
    calls = function.calls
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
        expected = untouched(*inputs)
        assert same(again(*inputs), expected)
        assert same(again(*inputs), expected)
    assert function.calls == calls
    # Weights are the tensors themselves.
    function.weight.mul_(3)
    untouched.weight.mul_(3)
    assert same(again(*inputs), untouched(*inputs))


@torch.inference_mode()
def test_one_tensor_may_be_two_inputs_and_an_output() -> None:
    x = torch.rand(2)
    found, again = record(lambda a, b: [a - b, b], (x, x))
    assert same(found, [torch.zeros(2), x])
    a, b = torch.rand(2), torch.rand(2)
    assert same(again(a, b), [a - b, b])


@torch.inference_mode()
def test_what_is_done_the_first_time_only_is_not_done_again() -> None:
    made: list[Tensor] = []

    def function(x: Tensor) -> list[Tensor]:
        if not made:
            made.append(torch.zeros(2, device="cpu"))
        return [x + made[0].add_(1)]

    found, again = record(function, (torch.zeros(2),))
    assert same(found, [torch.full((2,), 2.0)])
    assert again is not function
    assert same(again(torch.zeros(2)), [torch.full((2,), 3.0)])


@torch.inference_mode()
@pytest.mark.parametrize(
    "missing", ["parse_ir", "_create_function_from_graph", "type", "list", "results"]
)
def test_where_it_cannot_be_recorded_the_function_is_called(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def function(x: Tensor) -> list[Tensor]:
        # Arguments and results that are not written down.
        found = {
            "type": lambda: x.to(torch.float64),
            "list": lambda: torch.cat([x, x]),
            "results": lambda: x.unbind()[0],
        }
        return [x + 1, found[missing]()] if missing in found else [x + 1]

    if hasattr(torch._C, missing):
        monkeypatch.delattr(torch._C, missing)
    x = torch.rand(2)
    found, again = record(function, (x,))
    assert again is function
    assert same(found, function(x))


def test_no_compiler_is_imported_for_it() -> None:
    program = """
import sys, torch
from movinet_port.fast.replay import record
function = lambda x: [x + 1]
with torch.inference_mode():
    assert record(function, (torch.zeros(2),))[1] is not function
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.usefixtures("operations")
@pytest.mark.parametrize("recorded", [True, False])
def test_single_frames_are_recorded(
    recorded: bool,
    mini_spec: Callable[..., Any],
    randomised: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from movinet_port.fast import frame as module

    calls: list[int] = []

    def watched(function: TensorFunction, inputs: Sequence[Tensor]) -> Any:
        found, again = record(function, inputs)
        assert again is not function

        def count(*inputs: Tensor) -> Sequence[Tensor]:
            calls.append(len(inputs))
            return again(*inputs)

        return found, count

    def unrecorded(function: TensorFunction, inputs: Sequence[Tensor]) -> Any:
        return function(*inputs), function

    monkeypatch.setattr(module, "record", watched if recorded else unrecorded)
    model = randomised(MoViNet(mini_spec("stream", positional_encoding=True)))
    fast = optimize(model)
    assert isinstance(fast, FastMoViNet)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        for frame in torch.rand(5, 1, 3, 1, 37, 46, generator=generator):
            expected = model(frame).detach()
            assert (fast(frame) - expected).abs().max() <= 2e-5 * expected.abs().max()
        model.clean_activation_buffers()
        fast.clean_activation_buffers()
    ((plan,),) = fast._plans.values()
    assert isinstance(plan, FramePlan)
    # All but the very first frame, which is recorded.
    assert len(calls) == (9 if recorded else 0)
