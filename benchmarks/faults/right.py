"""Changes that change nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.faults.fault import patch
from benchmarks.faults.tensors import norm_forward
from movinet_port import MoViNet


def right_networks() -> Mapping[str, Callable[[MoViNet], nn.Module]]:
    """Return changes that change nothing: each must leave the verdict at parity."""

    def swish(network: MoViNet) -> nn.Module:
        for name, module in list(network.named_modules()):
            if isinstance(module, nn.SiLU):
                patch(name, lambda m, r, x: x * torch.sigmoid(x))(network)
            elif isinstance(module, nn.Hardswish):
                patch(name, lambda m, r, x: x * F.relu6(x + 3) / 6)(network)
        return network

    def momentum(network: MoViNet) -> nn.Module:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.momentum = 0.99
        return network

    def by_hand(network: MoViNet) -> nn.Module:
        for name, module in list(network.named_modules()):
            if isinstance(module, nn.BatchNorm3d):
                patch(name, norm_forward())(network)
        return network

    def frozen(network: MoViNet) -> nn.Module:
        return network.requires_grad_(False)

    def used(network: MoViNet) -> nn.Module:
        if network.spec.causal:
            with torch.no_grad():
                network(torch.rand(1, 3, 2, 32, 32))
            network.clean_activation_buffers()
        return network

    return {
        "as it is": lambda n: n,
        "in float64": lambda n: n.double(),
        "channels last": lambda n: n.to(memory_format=torch.channels_last_3d),
        "wrapped": lambda n: nn.Sequential(n),
        "another momentum": momentum,
        "other formulas": swish,
        "normalised by hand": by_hand,
        "without gradients": frozen,
        "used and cleaned": used,
    }
