"""The layers of packages that are computed by C++ of the project's own."""

from __future__ import annotations

import itertools
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import movinet_port
from movinet_port import MoViNet
from movinet_port.fast import aot, packaged
from movinet_port.fast.choice import Case
from movinet_port.fast.optimize import fold_network
from movinet_port.spec import StemSpec

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64")
    or not any(shutil.which(name) for name in ("c++", "g++", "clang++")),
    reason="for x86, with a C++ compiler",
)

# Gates, activations, classes, stems, and sizes for which rows or channels are dealt out; with
# vectors of 16 lanes, as AVX-512 has them, and of 8.
NETWORKS: list[tuple[int, dict[str, Any], tuple[int, int]]] = [
    (16, {}, (37, 46)),
    (
        16,
        {
            "se_type": "none",
            "activation": "relu",
            "stem": StemSpec(filters=16),
            "num_classes": 21,
        },
        (64, 130),
    ),
    (
        8,
        {
            "se_type": "2d",
            "activation": "relu6",
            "gate": "sigmoid",
            "positional_encoding": True,
            "stem": StemSpec(filters=8, kernel_size=(1, 5, 3), strides=(1, 1, 1)),
        },
        (51, 33),
    ),
]


@pytest.fixture
def threads() -> Iterator[None]:
    """Give back the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def largest_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("lanes", "changes", "size"), NETWORKS)
def test_layers_in_cpp_give_the_logits_and_states_of_the_readable_network(
    lanes: int,
    changes: dict[str, Any],
    size: tuple[int, int],
    mini_spec: Callable[..., Any],
    randomised: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: dict[str, list[bool]] = {"takes": [], "takes_stem": [], "takes_vector": []}
    for name, found in taken.items():
        takes = getattr(packaged.Kernels, name)

        def record(
            *arguments: Any, takes: Callable[..., bool] = takes, found: list[bool] = found
        ) -> bool:
            found.append(takes(*arguments))
            return found[-1]

        monkeypatch.setattr(packaged.Kernels, name, record)
    monkeypatch.setattr(
        aot, "kernels_for", lambda network: packaged.Kernels(lanes, network.spec.activation)
    )
    model = randomised(MoViNet(mini_spec("stream", **changes)))
    aot.compile_package(fold_network(model), tmp_path / "mini.pt2", size=size)
    assert taken["takes"]
    assert all(taken["takes"])
    assert taken["takes_stem"] == [True]
    # Inductor computes fewer classes than a vector has lanes.
    assert taken["takes_vector"] == [True, model.spec.num_classes >= lanes]
    package = movinet_port.load(tmp_path / "mini.pt2")
    frames = torch.rand(6, 1, 3, 1, *size)
    # Planes, pixels as decoders give them, and neither.
    ways: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda frame: frame,
        lambda frame: frame.movedim(1, -1).contiguous().movedim(-1, 1),
        lambda frame: frame.repeat_interleave(2, 4)[..., ::2],
    ]
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        state = expected = model.init_state(1, *size)
        for planes, way in zip(frames, itertools.cycle(ways), strict=False):
            frame = way(planes)
            before = state
            with torch.no_grad():
                logits, state = package.step(frame, state)
                right, expected = model.step(frame, expected)
            assert largest_error(logits, right) < 2e-5
            assert max(largest_error(state[name], expected[name]) for name in expected) < 2e-5
            # Threads share numbers that both compute.
            for _ in range(20):
                assert torch.equal(package.step(frame, before)[0], logits)


def test_what_the_cpp_does_not_cover_is_left_to_inductor(
    mini_spec: Callable[..., Any], randomised: Callable[..., Any]
) -> None:
    def takes(
        lanes: int = 16, frames: int = 1, batch: int = 1, **changes: Any
    ) -> tuple[bool, bool]:
        network = fold_network(randomised(MoViNet(mini_spec("stream", **changes))))
        case = Case(batch, frames, 16, 16, network.dtype, "cpu", stream=True)
        kernels = packaged.Kernels(lanes, "relu")
        layer = network.bottlenecks[-2]
        return kernels.takes(layer, case), kernels.takes_stem(network.stem, case)

    assert takes() == (True, True)
    assert takes(lanes=64) == (False, False)  # than which it is narrower
    assert takes(frames=2) == (False, False)
    assert takes(batch=2) == (False, False)
    assert takes(conv_type="3d") == (False, True)


@pytest.mark.parametrize("missing", ["type", "activation", "option", "instructions"])
def test_without_what_it_needs_there_is_no_kernel(
    missing: str,
    mini_spec: Callable[..., Any],
    randomised: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._inductor import cpu_vec_isa

    def found(**changes: Any) -> Any:
        model = randomised(MoViNet(mini_spec("stream", **changes)))
        return packaged.kernels_for(fold_network(model, dtype))

    dtype = torch.float32
    assert found() is not None
    changes = {}
    if missing == "type":
        dtype = torch.float64
    if missing == "activation":
        changes["activation"] = "swish"
    if missing == "option":
        monkeypatch.setattr(packaged, "_SHIMS", "shims_of_another_version")
    if missing == "instructions":
        monkeypatch.setattr(cpu_vec_isa, "pick_vec_isa", cpu_vec_isa.InvalidVecISA)
    assert found(**changes) is None
