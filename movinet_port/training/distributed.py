"""One process or several: the same code, and the same numbers."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from movinet_port.errors import MovinetPortError
from movinet_port.model import MoViNet


@dataclass(frozen=True)
class Process:
    """This process among those that `torchrun` started, and the device it trains on."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Return the sums over all processes."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.world_size > 1:
            total = total.to(self.device)
            dist.all_reduce(total)
        found: list[float] = total.tolist()
        return found

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier()


@contextlib.contextmanager
def joined(device: str | None = None) -> Iterator[Process]:
    """Yield this process; join the others first if `torchrun` started several.

    Args:
        device: "cpu", "cuda" or "cuda:N"; by default a GPU of its own for each process where there
            is one.

    Raises:
        MovinetPortError: there is no such device.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cpu" and not torch.cuda.is_available():
        raise MovinetPortError(f"device is {device!r}, and PyTorch finds no GPU; expected 'cpu'")
    if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
        raise MovinetPortError(f"device is {device!r}, expected 'cpu', 'cuda' or 'cuda:N'")
    if device == "cuda":
        device = f"cuda:{local_rank}"
        torch.cuda.set_device(local_rank)
    if world_size > 1:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Process(rank, world_size, torch.device(device))
    finally:
        if world_size > 1:
            dist.destroy_process_group()


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class SyncBatchNorm3d(nn.BatchNorm3d):
    """Batch normalisation over the batches of all processes, on any device.

    `torch.nn.SyncBatchNorm` runs on GPUs only. Every process must hand in equally many values.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised `x`; in training by the statistics of all processes."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        axes = (0, 2, 3, 4)
        count = wide.numel() // wide.shape[1] * dist.get_world_size()

        def mean_of(values: Tensor) -> Tensor:
            total: Tensor = _SumOverProcesses.apply(values.sum(axes))
            return total / count

        mean = mean_of(wide)
        centred = wide - mean[:, None, None, None]
        variance = mean_of(centred.square())
        with torch.no_grad():
            self.num_batches_tracked += 1
            rate = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), float(rate))
            unbiased = variance * (count / max(count - 1, 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), float(rate))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalised = centred * scale[:, None, None, None] + self.bias[:, None, None, None]
        return normalised.to(x.dtype)


def synchronise_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Let every batch normalisation see the batches of all processes; names stay what they are."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm) is nn.BatchNorm3d:
                synchronised = SyncBatchNorm3d(norm.num_features, norm.eps, norm.momentum)
                # The same tensors: an optimizer may know them already.
                synchronised._parameters = norm._parameters
                synchronised._buffers = norm._buffers
                setattr(parent, name, synchronised.train(norm.training))
    return model


def distribute(model: MoViNet, process: Process) -> nn.Module:
    """Return `model` on this process's device, in DistributedDataParallel if there are others."""
    model.to(process.device)
    if process.world_size == 1:
        return model
    synchronise_norms(model, process.device)
    # Statistics are equal in all processes already: there is nothing to broadcast.
    return DistributedDataParallel(model, broadcast_buffers=False)
