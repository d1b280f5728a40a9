"""Fixtures that more than one file of tests uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from movinet_port import BlockSpec, HeadSpec, ModelSpec, StemSpec
from movinet_port.fast import extension

# Inductor compiles in this process: others would each import PyTorch, and every core has its tests.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

# How the published stream networks differ from the base ones, spelt out once more on purpose.
STREAM = {
    "causal": True,
    "conv_type": "2plus1d",
    "se_type": "2plus3d",
    "activation": "hard_swish",
    "gate": "hard_sigmoid_keras",
}

# Files that take minutes: they start first, so that at the end no process waits for another.
LONGEST = ("test_compiled", "test_docs", "test_package", "test_finetune")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; `make test` deals files out in this order."""
    order = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def _block(filters: int, expand: tuple[int, ...], *kernels: str, stride: int = 2) -> BlockSpec:
    """One block from kernels such as "533" (frames, height, width)."""
    return BlockSpec(
        base_filters=filters,
        expand_filters=expand,
        kernel_sizes=tuple((int(t), int(h), int(w)) for t, h, w in kernels),
        strides=((1, stride, stride), *[(1, 1, 1)] * (len(kernels) - 1)),
    )


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """On a busy machine, threads of a small operation wait for each other longer than it takes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimised networks compute by PyTorch's operations, as where no C++ could be compiled."""
    monkeypatch.setattr(extension, "libraries", lambda: ())


@pytest.fixture(params=["compiled", "operations"])
def either(request: pytest.FixtureRequest) -> None:
    """Optimised networks compute by the compiled library, and by PyTorch's operations."""
    if request.param == "operations":
        request.getfixturevalue("operations")
    elif not extension.libraries():
        pytest.skip("no compiled library here")


@pytest.fixture(scope="session")
def mini_spec() -> Callable[..., ModelSpec]:
    """Factory: a small network with every kind of layer; "base" or "stream", and any changes."""

    def build(mode: str = "base", **changes: Any) -> ModelSpec:
        spec = ModelSpec(
            name="custom",
            stem=StemSpec(filters=8),
            blocks=(
                _block(8, (16,), "155"),
                _block(16, (24, 32), "333", "333"),
                # Strided at equal width.
                _block(16, (32, 24), "533", "333"),
                # A skip projection without a stride.
                _block(24, (40, 32), "533", "333", stride=1),
                _block(32, (48, 40), "533", "155"),
            ),
            head=HeadSpec(project_filters=48, head_filters=64),
            num_classes=7,
            **(STREAM if mode == "stream" else {}),
        )
        return spec.replace(**changes)

    return build


@pytest.fixture(scope="session")
def tiny_spec() -> Callable[..., ModelSpec]:
    """Factory: the smallest network with a strided, a temporal and a plain residual layer."""

    def build(mode: str = "base", **changes: Any) -> ModelSpec:
        spec = ModelSpec(
            name="custom",
            stem=StemSpec(filters=4),
            blocks=(_block(8, (8, 12), "333", "333"),),
            head=HeadSpec(project_filters=16, head_filters=16),
            num_classes=3,
            **(STREAM if mode == "stream" else {}),
        )
        return spec.replace(**changes)

    return build


@pytest.fixture(scope="session")
def randomised() -> Callable[..., Any]:
    """Factory: give every parameter and statistic of a network a random value; eval mode.

    ReZero and positional-encoding scalars start at 0, which makes every block the identity and
    every comparison of blocks vacuous.
    """

    @torch.no_grad()
    def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(seed)

        def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
            values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(low + (high - low) * values)

        for name, tensor in model.state_dict(keep_vars=True).items():
            leaf = name.rpartition(".")[2]
            if leaf == "num_batches_tracked":
                continue
            if leaf == "running_var":
                uniform(tensor, 0.5, 2.0)
            elif leaf == "scale":
                uniform(tensor, 0.2, 0.8)
            elif leaf == "weight" and tensor.ndim == 1:
                uniform(tensor, 0.5, 1.5)
            elif leaf == "weight":
                # Variance 2 / fan-in: activations keep their size through the network.
                bound = (6.0 / tensor[0].numel()) ** 0.5
                uniform(tensor, -bound, bound)
            else:
                uniform(tensor, -0.5, 0.5)
        return model.eval()

    return randomise


@pytest.fixture(scope="session")
def video() -> Callable[..., torch.Tensor]:
    """Factory: a random clip, (batch, 3, frames, height, width), in [0, 1]."""

    def build(
        batch: int = 2,
        frames: int = 7,
        height: int = 19,
        width: int = 26,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, 3, frames, height, width)
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)

    return build
