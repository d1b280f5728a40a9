"""What goes wrong when a network is ported, as data: each fault, and what should be said of it.

Tables of edits (to a tensor, to a module's forward, to the video) are laid over every place of a
network where they apply. A fault names the taps where it should be found and the causes that are
true of it: several where one thing has two names, ``unknown`` alone where the network computes
what no cause describes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from movinet_port import MoViNet
from movinet_port.layers import Bottleneck, Conv, same_padding
from movinet_port.streams import FRAME_COUNT, Snapshot

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


# Tensors. Each edit: cause, detail, what it does, further causes that are true of it.

Edit: TypeAlias = tuple[str, str, TensorEdit, tuple[str, ...]]


def _tensorflow_bytes(w: Tensor) -> Tensor:
    """Read TensorFlow's (t, h, w, in, out) as though it were (out, in, t, h, w)."""
    return w.permute(2, 3, 4, 1, 0).reshape(w.shape)


def _kernel_edits(w: Tensor) -> Iterator[Edit]:
    """Yield the ways to read a kernel wrongly."""
    out, inner, t, h, wide = w.shape
    yield "kernel-layout", "not transposed", _tensorflow_bytes, ()
    if h == wide > 1:
        yield "kernel-layout", "height and width", lambda w: w.transpose(3, 4), ()
    if t == h > 1:
        yield "kernel-layout", "frames and height", lambda w: w.transpose(2, 3), ()
        yield "kernel-layout", "axes reversed", lambda w: w.permute(0, 1, 4, 3, 2), ()
    if inner == h > 1:
        yield "kernel-layout", "(h, w, in, out) to (out, h, w, in)", lambda w: w.transpose(1, 3), ()
    if out == inner > 1:
        yield "kernel-layout", "in and out exchanged", lambda w: w.transpose(0, 1), ()
    if inner == 1 and t * h * wide > 1:
        yield (
            "kernel-layout",
            "(C, taps) filled as (taps, C)",
            lambda w: w.reshape(w.shape[0], -1).T.reshape(w.shape),
            (),
        )
    if t > 1:
        yield "kernel-flip", "time", lambda w: w.flip(2), ()
    if h > 1:
        yield "kernel-flip", "height", lambda w: w.flip(3), ()
        yield "kernel-flip", "width", lambda w: w.flip(4), ()
        yield "kernel-flip", "height and width", lambda w: w.flip(3, 4), ()
    if t > 1 and h > 1:
        yield "kernel-flip", "all", lambda w: w.flip(2, 3, 4), ()


def _default_kernel(w: Tensor) -> Tensor:
    bound = 1 / w[0].numel() ** 0.5
    return (torch.rand(w.shape, generator=torch.Generator().manual_seed(5)) * 2 - 1) * bound


WEIGHT_EDITS: tuple[Edit, ...] = (
    ("tensor-not-loaded", "nn.Conv3d's own", _default_kernel, ()),
    (
        "tensor-not-loaded",
        "Kaiming",
        lambda w: random_like(w, 6) * (2 / w[0].numel()) ** 0.5,
        (),
    ),
    ("tensor-not-loaded", "zeros", torch.zeros_like, ("tensor-scaled",)),
    ("tensor-scaled", "twice", lambda w: w * 2, ()),
    ("tensor-scaled", "/ 255", lambda w: w / 255, ()),
    ("tensor-scaled", "negated", torch.neg, ()),
    ("tensor-scaled", "a tenth of a percent", lambda w: w * 1.001, ()),
    ("precision", "stored in bfloat16", lambda w: w.bfloat16().to(w), ()),
    ("precision", "stored in float16", lambda w: w.half().to(w), ()),
    ("weights-differ", "a training step later", lambda w: w + 0.01 * w.std() * random_like(w), ()),
    (
        "weights-differ",
        "filters in another order",
        lambda w: w[torch.randperm(len(w), generator=torch.Generator().manual_seed(2))],
        ("kernel-layout",),
    ),
    (
        "weights-differ",
        "one filter pruned",
        lambda w: torch.cat([torch.zeros_like(w[:1]), w[1:]]),
        (),
    ),
    (
        "weights-differ",
        "another network's",
        lambda w: w.std() * random_like(w, 8),
        ("tensor-not-loaded",),
    ),
    (
        "weights-differ",
        "int8, one scale",
        lambda w: (w / w.abs().max() * 127).round() * w.abs().max() / 127,
        ("precision",),
    ),
)
BIAS_EDITS: tuple[Edit, ...] = (
    ("tensor-not-loaded", "zeros", torch.zeros_like, ("tensor-scaled",)),
    ("tensor-scaled", "added twice", lambda b: b * 2, ()),
    ("weights-differ", "another", lambda b: b + 0.1 * random_like(b), ()),
)
SCALAR_EDITS: tuple[Edit, ...] = (
    ("rezero", "at its initial 0", torch.zeros_like, ()),
    ("rezero", "as 1", torch.ones_like, ()),
    ("rezero", "negated", torch.neg, ("tensor-scaled", "weights-differ")),
    ("rezero", "squared", torch.square, ("tensor-scaled", "weights-differ")),
)

# Normalisations: what is in the four vectors (weight, bias, mean, variance).
FOUR = ("weight", "bias", "running_mean", "running_var")
NORM_ORDERS: tuple[tuple[str, str], ...] = (
    ("weight", "bias"),
    ("running_mean", "running_var"),
    ("weight", "running_var"),
    ("bias", "running_mean"),
    ("weight", "running_mean"),
)
NORM_EDITS: tuple[tuple[str, str, str, TensorEdit, tuple[str, ...]], ...] = (
    ("tensor-not-loaded", "weight", "weight at 1", torch.ones_like, ()),
    ("tensor-not-loaded", "bias", "bias at 0", torch.zeros_like, ("tensor-scaled",)),
    ("tensor-not-loaded", "running_mean", "mean at 0", torch.zeros_like, ("tensor-scaled",)),
    ("tensor-not-loaded", "running_var", "variance at 1", torch.ones_like, ()),
    ("tensor-scaled", "bias", "bias added twice", lambda t: t * 2, ()),
    ("tensor-scaled", "running_var", "variance of 1 / (n - 1)", lambda t: t * 1.02, ()),
    ("tensor-scaled", "weight", "weight halved", lambda t: t / 2, ()),
    ("weights-differ", "running_var", "deviation for variance", torch.sqrt, (UNKNOWN,)),
    ("weights-differ", "running_var", "inverse variance", torch.reciprocal, (UNKNOWN,)),
    ("weights-differ", "weight", "weight - 1", lambda t: t - 1, (UNKNOWN,)),
    (
        "weights-differ",
        "running_mean",
        "before the last update",
        lambda t: 0.99 * t + 0.01 * random_like(t),
        (),
    ),
)


def _norm_forward(eps_outside: bool = False, **changes: Any) -> Forward:
    def forward(norm: Any, right: Any, x: Tensor) -> Tensor:
        if eps_outside:
            shape = (1, -1, 1, 1, 1)
            scale = norm.weight / (norm.running_var.sqrt() + norm.eps)
            return (x - norm.running_mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)
        return F.batch_norm(
            x,
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            norm.training,
            0.0,
            changes.get("eps", norm.eps),
        )

    return forward


def _bfloat16(module: Any, right: Any, *args: Any) -> Any:
    """Round the inputs and the result, as a layer in bfloat16 does."""
    rounded = [
        a.bfloat16().to(a) if torch.is_tensor(a) and a.is_floating_point() else a for a in args
    ]
    out = right(*rounded)
    if isinstance(out, tuple):
        return out[0].bfloat16().to(out[0]), *out[1:]
    return out.bfloat16().to(out)


def _inside(dtype: torch.dtype) -> Forward:
    """Round the operands of a convolution, and sum up in float32, as hardware does."""

    def forward(conv: Any, right: Any, x: Tensor) -> Tensor:
        x = F.pad(x, conv.padding_for(x)) if conv.kernel_size != (1, 1, 1) else x
        weight = conv.weight.to(dtype).to(x)
        return F.conv3d(x.to(dtype).to(x), weight, conv.bias, conv.stride, groups=conv.groups)

    return forward


def _result_in_bfloat16(module: Any, right: Any, *args: Any) -> Any:
    """Round the result to bfloat16."""
    out = right(*args)
    if isinstance(out, tuple):
        return out[0].bfloat16().to(out[0]), *out[1:]
    return out.bfloat16().to(out)


def _float16(module: Any, right: Any, *args: Any) -> Any:
    """Round the result to float16."""
    out = right(*args)
    if isinstance(out, tuple):
        return out[0].half().to(out[0]), *out[1:]
    return out.half().to(out)


# Convolutions that compute something else.


def _padded(pads: Callable[[Conv, Tensor], list[int]], mode: str = "constant") -> Forward:
    def forward(conv: Conv, right: Any, x: Tensor) -> Tensor:
        x = F.pad(x, pads(conv, x), mode=mode)
        return F.conv3d(x, conv.weight, conv.bias, conv.stride, groups=conv.groups)

    return forward


def _time(conv: Conv) -> list[int]:
    t = conv.kernel_size[0]
    return [0, 0] if conv.causal else list(same_padding(10**6, t, 1))


def _symmetric(conv: Conv, x: Tensor) -> list[int]:
    _, h, w = conv.kernel_size
    return [w // 2, w // 2, h // 2, h // 2, *_time(conv)]


def _more_before(conv: Conv, x: Tensor) -> list[int]:
    pads = conv.padding_for(x)
    return [pads[1], pads[0], pads[3], pads[2], *pads[4:]]


def _all_after(conv: Conv, x: Tensor) -> list[int]:
    pads = conv.padding_for(x)
    return [0, pads[0] + pads[1], 0, pads[2] + pads[3], *pads[4:]]


def _legacy(conv: Conv, x: Tensor) -> list[int]:
    _, h, w = conv.kernel_size
    return [(w - 1) // 2, w - 1 - (w - 1) // 2, (h - 1) // 2, h - 1 - (h - 1) // 2, *_time(conv)]


def _same(conv: Conv, x: Tensor) -> list[int]:
    _, h, w = conv.kernel_size
    _, sh, sw = conv.stride
    return [*same_padding(x.shape[4], w, sw), *same_padding(x.shape[3], h, sh), *_time(conv)]


def _past_only(conv: Conv, x: Tensor) -> list[int]:
    return [*conv.padding_for(x)[:4], conv.kernel_size[0] - 1, 0]


def _as_it_is(conv: Conv, x: Tensor) -> list[int]:
    return conv.padding_for(x)


def _padded_with_grey(conv: Conv, right: Any, x: Tensor) -> Tensor:
    x = F.pad(x, conv.padding_for(x), value=0.5)
    return F.conv3d(x, conv.weight, conv.bias, conv.stride, groups=conv.groups)


def _set_legacy(conv: Any) -> None:
    conv.legacy = not conv.legacy


def _declare_symmetric(conv: Any) -> None:
    conv.padding_for = lambda x: _symmetric(conv, x)


def _past_repeated(conv: Conv, right: Any, x: Tensor) -> Tensor:
    """Repeat the first and last frame instead of padding time with black."""
    pads = conv.padding_for(x)
    x = F.pad(F.pad(x, [0, 0, 0, 0, *pads[4:]], mode="replicate"), [*pads[:4], 0, 0])
    return F.conv3d(x, conv.weight, conv.bias, conv.stride, groups=conv.groups)


def _dilated(conv: Conv, right: Any, x: Tensor) -> Tensor:
    _, h, w = conv.kernel_size
    pads = conv.padding_for(x)
    wide = [pads[0] + w // 2, pads[1] + w // 2, pads[2] + h // 2, pads[3] + h // 2, *pads[4:]]
    return F.conv3d(F.pad(x, wide), conv.weight, conv.bias, conv.stride, 0, (1, 2, 2), conv.groups)


PADDINGS: tuple[tuple[str, Forward], ...] = (
    ("k // 2 on both sides", _padded(_symmetric)),
    ("the larger half before", _padded(_more_before)),
    ("all after", _padded(_all_after)),
    ("legacy", _padded(_legacy)),
    ("SAME", _padded(_same)),
    ("reflected", _padded(_as_it_is, "reflect")),
    ("repeated", _padded(_as_it_is, "replicate")),
    ("around the other side", _padded(_as_it_is, "circular")),
    ("not with 0", _padded_with_grey),
)

# Activations: whatever stands in the place of the right one.
FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "swish": lambda x: x * torch.sigmoid(x),
    "hard_swish": lambda x: x * F.relu6(x + 3) / 6,
    "hard_swish of 0.16667": lambda x: x * F.relu6(x + 3) * 0.16667,
    "relu": torch.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "leaky relu": lambda x: F.leaky_relu(x, 0.1),
    "mish": F.mish,
    "x sigmoid(1.702 x)": lambda x: x * torch.sigmoid(1.702 * x),
    "sigmoid": torch.sigmoid,
    "none": lambda x: x + 0,
    "twice": lambda x: F.silu(F.silu(x)),
}
GATES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "clip(0.2 x + 0.5)": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "relu6(x + 3) / 6": lambda x: F.relu6(x + 3) / 6,
    "relu6(x + 3) * 0.16667": lambda x: F.relu6(x + 3) * 0.16667,
    "none": lambda x: x + 0,
    "tanh": torch.tanh,
    "over channels": lambda x: torch.softmax(x, dim=1),
    "ones": torch.ones_like,
    "(tanh + 1) / 2": lambda x: (torch.tanh(x) + 1) / 2,
}

# Pools.


def _pool(**settings: Any) -> Forward:
    """Return PyTorch's own average pool in the place of TensorFlow's."""

    def forward(pool: Any, right: Any, x: Tensor) -> Tensor:
        pads = [*same_padding(x.shape[4], 3, 2), *same_padding(x.shape[3], 3, 2)]
        if settings.get("same"):
            x = F.pad(x, pads)
        rest = {k: v for k, v in settings.items() if k != "same"}
        planes = x.flatten(1, 2)
        return F.avg_pool2d(planes, 3, 2, **rest).unflatten(1, (x.shape[1], x.shape[2]))

    return forward


def _max_pool(pool: Any, right: Any, x: Tensor) -> Tensor:
    pads = [*same_padding(x.shape[4], 3, 2), *same_padding(x.shape[3], 3, 2)]
    return F.max_pool3d(F.pad(x, pads, value=-1e9), (1, 3, 3), (1, 2, 2))


SKIP_POOLS: tuple[tuple[str, str, Forward, tuple[str, ...]], ...] = (
    ("pool-divisor", "counts padding", _pool(same=True), ()),
    ("pool-divisor", "sums", _pool(same=True, divisor_override=1), (UNKNOWN, "skip-path")),
    ("padding", "padding=1, counted", _pool(padding=1), ("pool-divisor",)),
    ("padding", "padding=1", _pool(padding=1, count_include_pad=False), ("pool-divisor",)),
    (
        "skip-path",
        "every other pixel",
        lambda pool, right, x: x[..., ::2, ::2] + 0,
        (UNKNOWN, "padding"),
    ),
    ("unknown", "maximum", _max_pool, ("skip-path", UNKNOWN)),
)

# What a bottleneck does with its parts.


def _bottleneck(combine: Callable[..., Tensor]) -> Forward:
    def forward(layer: Any, right: Any, x: Tensor, stream: Any, pool: Any, count: Tensor) -> Any:
        skip = x if layer.skip is None else layer.skip(x)
        branch, stream = layer.depthwise(layer.expansion(x), stream)
        if layer.squeeze_excitation is not None:
            branch, pool = layer.squeeze_excitation(branch, pool, count)
        return combine(layer, layer.rezero(layer.projection(branch)), skip), stream, pool

    return forward


SUMS: tuple[tuple[str, str, Callable[..., Tensor], tuple[str, ...]], ...] = (
    ("skip-path", "left out", lambda m, branch, skip: branch + 0 * skip, ()),
    ("skip-path", "twice", lambda m, branch, skip: branch + 2 * skip, ()),
    ("skip-path", "subtracted", lambda m, branch, skip: branch - skip, ()),
    ("skip-path", "halved", lambda m, branch, skip: (branch + skip) / 2, (UNKNOWN,)),
    ("skip-path", "branch left out", lambda m, branch, skip: skip + 0 * branch, ("rezero",)),
    ("rezero", "on the skip too", lambda m, b, s: b + m.rezero.scale * s, ("skip-path",)),
    ("rezero", "on the sum", lambda m, b, s: m.rezero.scale * (b + s), ("skip-path", UNKNOWN)),
    ("rezero", "twice", lambda m, b, s: m.rezero.scale * b + s, ("skip-path", UNKNOWN)),
    ("unknown", "relu after the sum", lambda m, b, s: torch.relu(b + s), ("activation", UNKNOWN)),
    ("unknown", "multiplied", lambda m, b, s: b * s, ("skip-path", UNKNOWN)),
    ("unknown", "clipped", lambda m, b, s: (b + s).clamp(-1, 1), (UNKNOWN,)),
)

# What a squeeze-excitation does with its parts.


def _squeeze(
    pooled: Callable[..., Tensor] | None = None, product: Callable[..., Tensor] | None = None
) -> Forward:
    def forward(se: Any, right: Any, x: Tensor, buffer: Any, count: Tensor) -> Any:
        spatial = se.spatial_pool(x) if se.spatial_pool is not None else None
        time = None
        if se.temporal_pool is not None:
            time, buffer = se.temporal_pool(x if spatial is None else spatial, buffer, count)
        parts = [
            p if spatial is None else p.expand_as(spatial) for p in (time, spatial) if p is not None
        ]
        both = torch.cat(parts, dim=1) if pooled is None else pooled(parts, x)
        if se.positional_encoding is not None:
            both = se.positional_encoding(both, count)
        gate = se.expand(se.reduce(both))
        return (gate * x if product is None else product(gate, x)), buffer

    return forward


SE_POOLED: tuple[tuple[str, Callable[..., Tensor]], ...] = (
    ("means in the other order", lambda parts, x: torch.cat(parts[::-1], dim=1)),
    ("the frame's mean twice", lambda parts, x: torch.cat([parts[1], parts[1]], dim=1)),
    ("the video's mean twice", lambda parts, x: torch.cat([parts[0], parts[0]], dim=1)),
    (
        "the last frame's mean for all",
        lambda parts, x: torch.cat([parts[0][:, :, -1:].expand_as(parts[0]), parts[1]], dim=1),
    ),
    (
        "not tiled, the rest 0",
        lambda parts, x: torch.cat(
            [F.pad(parts[0][:, :, :1], (0, 0, 0, 0, 0, parts[0].shape[2] - 1)), parts[1]], dim=1
        ),
    ),
    ("channels in turn", lambda parts, x: torch.stack(parts, dim=2).flatten(1, 2)),
)
SE_PRODUCTS: tuple[tuple[str, Callable[..., Tensor]], ...] = (
    ("gate left out", lambda gate, x: x + 0 * gate),
    ("gate added", lambda gate, x: x + gate),
    ("x (1 + gate)", lambda gate, x: x * (1 + gate)),
    ("gated twice", lambda gate, x: x * gate * gate),
)


def _cumulative(mean: Callable[..., Tensor]) -> Forward:
    """Compute the means wrongly, and carry on the right sum."""

    def forward(pool: Any, right: Any, x: Tensor, buffer: Any, count: Tensor) -> Any:
        out, total = right(x, buffer, count)
        planes = x.mean(dim=(3, 4), keepdim=True)
        before = torch.zeros_like(total) if buffer is None else buffer
        return mean(planes, before, count, x) + 0 * out, total

    return forward


def _steps(x: Tensor) -> Tensor:
    return torch.arange(1, x.shape[2] + 1).view(1, 1, -1, 1, 1).to(x)


def _number(count: Tensor, x: Tensor) -> Tensor:
    return count.view(-1, 1, 1, 1, 1).to(x)


CUMULATIVE: tuple[tuple[str, str, Callable[..., Tensor], tuple[str, ...]], ...] = (
    ("se-pooling", "mean of the clip", lambda p, b, n, x: p.mean(2, True), ()),
    (
        "se-pooling",
        "cumulative in the clip only",
        lambda p, b, n, x: p.cumsum(2) / _steps(p),
        ("stream-state",),
    ),
    ("se-pooling", "frame by frame", lambda p, b, n, x: p, ()),
    (
        "se-pooling",
        "one mean with the whole clip",
        lambda p, b, n, x: (b + p.sum(2, True)) / (_number(n, p) + p.shape[2]),
        (),
    ),
    (
        "se-pooling",
        "the greatest",
        lambda p, b, n, x: x.amax(dim=(3, 4), keepdim=True),
        (UNKNOWN,),
    ),
    (
        "pool-divisor",
        "divided by all frames of the clip",
        lambda p, b, n, x: (b + p.cumsum(2)) / (_number(n, p) + p.shape[2]),
        ("se-pooling",),
    ),
    (
        "pool-divisor",
        "one frame too many",
        lambda p, b, n, x: (b + p.cumsum(2)) / (_number(n, p) + _steps(p) + 1),
        ("se-pooling", "stream-state"),
    ),
    ("pool-divisor", "not divided", lambda p, b, n, x: b + p.cumsum(2), ("se-pooling",)),
    (
        "se-pooling",
        "without the present frame",
        lambda p, b, n, x: (b + p.cumsum(2) - p) / (_number(n, p) + _steps(p)),
        (UNKNOWN,),
    ),
    (
        "se-pooling",
        "a running average of 0.9",
        lambda p, b, n, x: 0.9 * b + 0.1 * p,
        (UNKNOWN,),
    ),
)
CLIP_POOL: tuple[tuple[str, str, Callable[..., Tensor], tuple[str, ...]], ...] = (
    ("se-pooling", "the last frame", lambda x: x[:, :, -1:].mean((3, 4), True), (UNKNOWN,)),
    ("se-pooling", "the first frame", lambda x: x[:, :, :1].mean((3, 4), True), (UNKNOWN,)),
    ("se-pooling", "the greatest", lambda x: x.amax((2, 3, 4), True), (UNKNOWN,)),
    (
        "pool-divisor",
        "one frame too few",
        lambda x: x.mean((2, 3, 4), True) * x.shape[2] / (x.shape[2] - 1),
        ("se-pooling",),
    ),
    ("pool-divisor", "the sum", lambda x: x.sum((2, 3, 4), True), ("se-pooling",)),
    (
        "pool-divisor",
        "frames not counted",
        lambda x: x.mean((3, 4), True).sum(2, True),
        ("se-pooling",),
    ),
)


def _waves(
    rate: Callable[[Tensor, int], Tensor] | None = None,
    order: str = "halves",
    first: Callable[[Tensor], Tensor] = lambda n: n,
    combine: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda x, w, s: x + s * w,
) -> Forward:
    """Return another positional encoding."""

    def forward(module: Any, right: Any, x: Tensor, count: Tensor) -> Tensor:
        channels, frames = x.shape[1:3]
        index = torch.arange(channels)
        power = (
            10_000.0 ** -((2 * (index // 2)).to(x) / channels)
            if rate is None
            else rate(index, channels).to(x)
        )
        position = (first(count)[:, None] + torch.arange(frames)).to(x)
        angle = power[None, :, None] * position[:, None]
        even, odd = angle[:, 0::2], angle[:, 1::2]
        if order == "halves":
            wave = torch.cat([even.sin(), odd.cos()], 1)
        elif order == "in turn":
            wave = torch.stack([even.sin(), odd.cos()], 2).flatten(1, 2)
        elif order == "cosines first":
            wave = torch.cat([even.cos(), odd.sin()], 1)
        else:
            half = channels // 2
            wave = torch.cat([angle[:, :half].sin(), angle[:, half:].cos()], 1)
        return combine(x, wave[..., None, None], module.scale)

    return forward


POSITIONS: tuple[tuple[str, Forward, tuple[str, ...]], ...] = (
    ("interleaved", _waves(order="in turn"), ()),
    ("cosines first", _waves(order="cosines first"), ()),
    ("first channels' rates are sines'", _waves(order="neither"), (UNKNOWN,)),
    ("base of 1,000", _waves(lambda i, c: 1000.0 ** -((2 * (i // 2)) / c)), (UNKNOWN,)),
    ("rates not in twos", _waves(lambda i, c: 10_000.0 ** -(i / c)), (UNKNOWN,)),
    ("frames counted from 1", _waves(first=lambda n: n + 1), ("stream-state",)),
    ("begins anew with each clip", _waves(first=lambda n: 0 * n), ("stream-state",)),
    ("without its scale", _waves(combine=lambda x, w, s: x + w + 0 * s), ()),
    ("multiplied", _waves(combine=lambda x, w, s: x * (1 + s * w)), (UNKNOWN,)),
    ("subtracted", _waves(combine=lambda x, w, s: x - s * w), ()),
    ("left out", lambda m, right, x, n: x + 0 * m.scale, ()),
)


# The stream.


def _buffered(new: Callable[[Tensor, Tensor, int], Tensor]) -> Apply | Callable[[str], Apply]:
    """Hand on another buffer than the last frames of (buffer, clip)."""

    def build(path: str) -> Apply:
        def action(block: Any) -> None:
            right = block._with_buffer

            def with_buffer(x: Tensor, buffer: Any) -> Any:
                size = block.stream_conv.frames_before
                joined, _ = right(x, buffer)
                return joined, new(joined, x, size).clone()

            block._with_buffer = with_buffer

        return change(path, action)

    return build


def _read(given: Callable[[Tensor], Tensor]) -> Callable[[str], Apply]:
    """Read the buffer wrongly, and hand on the right one."""

    def build(path: str) -> Apply:
        def action(block: Any) -> None:
            right = block._with_buffer

            def with_buffer(x: Tensor, buffer: Any) -> Any:
                joined, new = right(x, None if buffer is None else given(buffer))
                return joined, (new if buffer is None else right(x, buffer)[1])

            block._with_buffer = with_buffer

        return change(path, action)

    return build


BUFFERS: tuple[tuple[str, Any], ...] = (
    ("one frame late", _buffered(lambda joined, x, n: joined[:, :, -n - 1 : -1])),
    ("never updated", _buffered(lambda joined, x, n: joined[:, :, :n])),
    ("zeroed with each clip", _buffered(lambda joined, x, n: 0 * joined[:, :, -n:])),
    ("frames reversed", _buffered(lambda joined, x, n: joined[:, :, -n:].flip(2))),
    ("zeroed when read", _read(lambda b: 0 * b)),
    ("reversed when read", _read(lambda b: b.flip(2))),
    ("one frame on when read", _read(lambda b: b.roll(-1, 2))),
    ("of another clip of the batch", _read(lambda b: b.flip(0))),
)
SUMS_CARRIED: tuple[tuple[str, Callable[..., Tensor]], ...] = (
    ("zeroed with each clip", lambda total, before, frames: 0 * total),
    ("never updated", lambda total, before, frames: before),
    ("of the last clip only", lambda total, before, frames: total - before),
    ("mean for sum", lambda total, before, frames: total / frames),
)


def _carried(new: Callable[..., Tensor]) -> Forward:
    def forward(pool: Any, right: Any, x: Tensor, buffer: Any, count: Tensor) -> Any:
        out, total = right(x, buffer, count)
        return out, new(total, torch.zeros_like(total) if buffer is None else buffer, x.shape[2])

    return forward


# The video. Edits that keep the number of frames unless they say otherwise.

_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1, 1)


def _order(*frames: int) -> TensorEdit:
    """Return an edit to clips of so many frames as are named."""
    return lambda v: v[:, :, list(frames)] if v.shape[2] == len(frames) else v


VIDEOS: tuple[tuple[str, str, TensorEdit, tuple[str, ...]], ...] = (
    ("channel-order", "BGR", lambda v: v.flip(1), ()),
    ("channel-order", "GBR", lambda v: v.roll(1, 1), ()),
    ("channel-order", "RBG", lambda v: v[:, [0, 2, 1]], ()),
    ("input-scaling", "0 to 255", lambda v: v * 255, ()),
    ("input-scaling", "-1 to 1", lambda v: v * 2 - 1, ()),
    ("input-scaling", "-0.5 to 0.5", lambda v: v - 0.5, ()),
    ("input-scaling", "ImageNet", lambda v: (v - _MEAN.to(v)) / _STD.to(v), ()),
    ("input-scaling", "only the mean", lambda v: v - _MEAN.to(v), ()),
    ("input-scaling", "divided twice", lambda v: v / 255, ()),
    ("input-scaling", "/ 256", lambda v: v * 255 / 256, ()),
    ("input-layout", "height and width", lambda v: v.transpose(3, 4), ()),
    ("input-layout", "TensorFlow's bytes", lambda v: v.permute(0, 2, 3, 4, 1).reshape(v.shape), ()),
    (
        "input-layout",
        "frames read as channels",
        lambda v: v.transpose(1, 2).reshape(v.shape),
        ("frame-order",),
    ),
    ("input-layout", "mirrored", lambda v: v.flip(4), (UNKNOWN,)),
    ("input-layout", "upside down", lambda v: v.flip(3), (UNKNOWN,)),
    ("precision", "float16", lambda v: v.half().to(v), ()),
    ("precision", "bfloat16", lambda v: v.bfloat16().to(v), ()),
    ("precision", "bytes", lambda v: (v * 255).round() / 255, (UNKNOWN,)),
    ("frame-order", "reversed", lambda v: v.flip(2), ()),
    ("frame-order", "neighbours exchanged", _order(1, 0, 2), ()),
    ("frame-order", "neighbours exchanged", _order(1, 0, 3, 2, 5, 4), ()),
    ("frame-order", "shuffled", _order(3, 0, 5, 2, 1, 4), ()),
    ("frame-order", "one frame repeated", _order(0, 1, 1), ()),
    ("frame-order", "one frame repeated", _order(0, 1, 2, 2, 4, 5), ()),
    ("frame-order", "one frame dropped", lambda v: v[:, :, :-1] if v.shape[2] > 2 else v, ()),
    ("frame-order", "the first frame dropped", lambda v: v[:, :, 1:] if v.shape[2] > 2 else v, ()),
    ("frame-order", "every other frame", lambda v: v[:, :, ::2] if v.shape[2] > 2 else v, ()),
    (
        "frame-order",
        "half of them twice",
        lambda v: v[:, :, [i // 2 * 2 for i in range(v.shape[2])]],
        (),
    ),
    ("unknown", "grey", lambda v: v.mean(1, True).expand(v.shape), (UNKNOWN,)),
    ("unknown", "gamma", lambda v: v.clamp(min=0) ** 2.2, (UNKNOWN,)),
    ("unknown", "shifted by a pixel", lambda v: v.roll(1, 4), (UNKNOWN,)),
    ("unknown", "noise", lambda v: v + 0.05 * random_like(v), (UNKNOWN,)),
    ("unknown", "blurred", lambda v: F.avg_pool3d(v, (1, 3, 3), 1, (0, 1, 1)), (UNKNOWN,)),
)


# Laying the tables over a network


def porting_faults(network: MoViNet) -> Iterator[Fault]:
    """Yield every fault that one place of a network can have."""
    for name, module in network.named_modules():
        if isinstance(module, Conv):
            yield from _conv_faults(network, name, module)
        elif isinstance(module, nn.BatchNorm3d):
            yield from _norm_faults(network, name)
        elif isinstance(module, Bottleneck):
            yield from _bottleneck_faults(network, name, module)
        elif name.endswith("activation"):
            gate = name.endswith("squeeze_excitation.expand.activation")
            for detail, function in (GATES if gate else FUNCTIONS).items():
                cause = "gate" if gate else "activation"
                yield Fault(
                    cause,
                    at(name),
                    detail,
                    patch(name, lambda m, r, x, f=function: f(x)),
                )
            yield Fault("precision", at(name), "bfloat16", patch(name, _bfloat16))
            for kind in (nn.Sigmoid, nn.Hardsigmoid) if gate else (nn.SiLU, nn.Hardswish, nn.ReLU):
                yield Fault(
                    "gate" if gate else "activation",
                    at(name),
                    f"nn.{kind.__name__}",
                    in_place_of(name, kind),
                )
    yield from _exchanged(network)
    yield from _pool_faults(network, "pool", "pool")
    yield from _whole_faults(network)
    for cause, detail, video, accepts in VIDEOS:
        yield Fault(
            cause,
            at("input"),
            detail,
            lambda n, v=video: Around(n, lambda net, x: net(v(x))),
            frozenset((cause, *accepts)) if accepts else frozenset(),
            alone=True,
        )
    if network.spec.causal:
        yield from _stream_faults(network)


def _fault(cause: str, tap: str, detail: str, apply: Apply, accepts: Sequence[str] = ()) -> Fault:
    # An unknown is unknown: what else it may be called must be said in full.
    true = frozenset(accepts) if cause == UNKNOWN and accepts else frozenset((cause, *accepts))
    return Fault(cause, at(tap), detail, apply, true)


def _conv_faults(network: MoViNet, name: str, conv: Conv) -> Iterator[Fault]:
    weight = f"{name}.weight"
    for cause, detail, function, accepts in (*_kernel_edits(conv.weight), *WEIGHT_EDITS):
        yield _fault(cause, name, detail, edit(weight, function), accepts)
    if conv.bias is not None:
        for cause, detail, function, accepts in BIAS_EDITS:
            yield _fault(cause, name, f"bias {detail}", edit(f"{name}.bias", function), accepts)
        yield _fault(
            "tensor-not-loaded",
            name,
            "weight and bias",
            in_turn(edit(weight, _default_kernel), edit(f"{name}.bias", torch.zeros_like)),
        )
    frames, height, _ = conv.kernel_size
    if height > 1:
        for detail, forward in PADDINGS:
            yield _fault("padding", name, detail, patch(name, forward))
        yield _fault("unknown", name, "dilation", patch(name, _dilated))
        yield _fault("padding", name, "the other generation's", change(name, _set_legacy))
        yield _fault("padding", name, "k // 2 by its own rule", change(name, _declare_symmetric))
    if frames > 1 and not conv.causal:
        yield _fault("padding", name, "past only", patch(name, _padded(_past_only)))
        yield _fault("padding", name, "frames repeated", patch(name, _past_repeated))
    yield _fault("precision", name, "in bfloat16", patch(name, _bfloat16))
    yield _fault("precision", name, "result in float16", patch(name, _float16))
    for dtype in (torch.bfloat16, torch.float16):
        kind = str(dtype).removeprefix("torch.")
        yield _fault("precision", name, f"{kind} inside", patch(name, _inside(dtype)))
    yield _fault(
        "unknown", name, "noise", patch(name, lambda m, r, x: r(x) + 0.1 * random_like(r(x)))
    )
    yield _fault(
        "unknown", name, "dropout", patch(name, lambda m, r, x: r(F.dropout(x, 0.2, True)))
    )
    yield _fault("unknown", name, "tanh", patch(name, lambda m, r, x: torch.tanh(r(x))))
    yield _fault(
        "unknown",
        name,
        "weight standardised",
        patch(
            name,
            lambda m, r, x: (
                r(x)
                - F.conv3d(
                    F.pad(x, m.padding_for(x)),
                    m.weight.mean((1, 2, 3, 4), True).expand_as(m.weight),
                    None,
                    m.stride,
                    groups=m.groups,
                )
                if m.weight[0].numel() > 1
                else r(x)
            ),
        ),
    )


def _norm_faults(network: MoViNet, name: str) -> Iterator[Fault]:
    for eps in (1e-5, 1e-6, 1e-2, 0.0):
        yield _fault(
            "norm-epsilon", name, f"{eps:g}", change(name, lambda m, e=eps: setattr(m, "eps", e))
        )
    yield _fault(
        "norm-epsilon",
        name,
        "outside the root",
        patch(name, _norm_forward(eps_outside=True)),
        (UNKNOWN,),
    )
    yield _fault("norm-not-in-eval", name, "train()", change(name, lambda m: m.train()))
    yield _fault(
        "norm-not-in-eval",
        name,
        "no running statistics",
        change(name, lambda m: (setattr(m, "running_mean", None), setattr(m, "running_var", None))),
        ("tensor-not-loaded",),
    )
    yield _fault(
        "norm-not-in-eval",
        name,
        "F.batch_norm(training=True)",
        patch(
            name, lambda m, r, x: F.batch_norm(x, None, None, m.weight, m.bias, True, 0.0, m.eps)
        ),
    )
    for first, second in NORM_ORDERS:
        yield _fault(
            "norm-stats-swapped",
            name,
            f"{first}, {second}",
            exchange(f"{name}.{first}", f"{name}.{second}"),
        )
    yield _fault(
        "norm-stats-swapped",
        name,
        "mean, variance, weight, bias",
        in_turn(
            exchange(f"{name}.weight", f"{name}.running_mean"),
            exchange(f"{name}.bias", f"{name}.running_var"),
        ),
    )
    for cause, leaf, detail, function, accepts in NORM_EDITS:
        yield _fault(cause, name, detail, edit(f"{name}.{leaf}", function), accepts)
    initial = {
        leaf: (torch.ones_like if leaf in ("weight", "running_var") else torch.zeros_like)
        for leaf in FOUR
    }
    yield _fault(
        "tensor-not-loaded",
        name,
        "all four",
        in_turn(*(edit(f"{name}.{leaf}", f) for leaf, f in initial.items())),
    )
    yield _fault(
        "tensor-not-loaded",
        name,
        "both statistics",
        in_turn(*(edit(f"{name}.{leaf}", initial[leaf]) for leaf in FOUR[2:])),
    )
    yield _fault(
        "weights-differ",
        name,
        "fine-tuned",
        in_turn(
            *(edit(f"{name}.{leaf}", lambda t: t * (1 + 0.02 * random_like(t, 4))) for leaf in FOUR)
        ),
    )
    yield _fault("precision", name, "in bfloat16", patch(name, _bfloat16))
    yield _fault(
        "unknown",
        name,
        "instance norm",
        patch(
            name, lambda m, r, x: F.instance_norm(x, None, None, m.weight, m.bias, True, 0.0, m.eps)
        ),
        (UNKNOWN, "norm-not-in-eval"),
    )
    yield _fault(
        "unknown",
        name,
        "layer norm",
        patch(name, lambda m, r, x: F.group_norm(x, 1, m.weight, m.bias, m.eps)),
    )
    yield _fault(
        "activation",
        name,
        "relu before it",
        patch(name, lambda m, r, x: r(torch.relu(x))),
        (UNKNOWN,),
    )
    yield _fault(
        "activation",
        name,
        "relu behind it",
        patch(name, lambda m, r, x: torch.relu(r(x))),
        (UNKNOWN,),
    )


def _bottleneck_faults(network: MoViNet, name: str, layer: Bottleneck) -> Iterator[Fault]:
    for cause, detail, combine, accepts in SUMS:
        yield _fault(cause, name, detail, patch(name, _bottleneck(combine)), accepts)
    rezero = f"{name}.rezero"
    for cause, detail, function, accepts in SCALAR_EDITS:
        yield _fault(cause, rezero, detail, edit(f"{rezero}.scale", function), accepts)
    yield _fault("rezero", rezero, "left out", patch(rezero, lambda m, r, x: x + 0 * m.scale))
    yield _fault(
        "rezero", rezero, "1 + scale", patch(rezero, lambda m, r, x: (1 + m.scale) * x), (UNKNOWN,)
    )
    yield _fault("precision", name, "sum in bfloat16", patch(name, _result_in_bfloat16))
    if layer.skip is not None:
        if layer.skip.pool is not None:
            for cause, detail, forward, accepts in SKIP_POOLS:
                tap = f"{name}.skip.pool"
                yield _fault(cause, tap, detail, patch(tap, forward), accepts)
        yield _fault(
            "skip-path",
            name,
            "activation in the skip",
            patch(f"{name}.skip", lambda m, r, x: F.silu(r(x))),
            (UNKNOWN, "activation"),
        )
    se = layer.squeeze_excitation
    if se is None:
        return
    path = f"{name}.squeeze_excitation"
    first = (
        f"{path}.reduce.conv" if se.positional_encoding is None else f"{path}.positional_encoding"
    )
    if se.spatial_pool is not None and se.temporal_pool is not None:
        for detail, pooled in SE_POOLED:
            yield _fault(
                "se-pooling",
                first,
                detail,
                patch(path, _squeeze(pooled)),
                (UNKNOWN,) if "turn" in detail or "rest 0" in detail else (),
            )
    for detail, product in SE_PRODUCTS:
        yield _fault(
            "unknown",
            path,
            detail,
            patch(path, _squeeze(None, product)),
            (UNKNOWN, "gate", "se-pooling"),
        )
    if se.spatial_pool is not None:
        tap = f"{path}.spatial_pool"
        yield _fault(
            "se-pooling",
            tap,
            "the greatest",
            patch(tap, lambda m, r, x: x.amax((3, 4), True)),
            (UNKNOWN,),
        )
        yield _fault(
            "se-pooling",
            tap,
            "over frames too",
            patch(tap, lambda m, r, x: x.mean((2, 3, 4), True).expand(-1, -1, x.shape[2], -1, -1)),
        )
        yield _fault(
            "pool-divisor",
            tap,
            "sum",
            patch(tap, lambda m, r, x: x.sum((3, 4), True)),
            ("se-pooling",),
        )
        yield _fault("precision", tap, "float16", patch(tap, _float16))
    if se.temporal_pool is not None:
        yield from _pool_faults(network, f"{path}.temporal_pool", f"{path}.temporal_pool")
    if se.positional_encoding is not None:
        tap = f"{path}.positional_encoding"
        for detail, forward, accepts in POSITIONS:
            yield _fault("positional-encoding", tap, detail, patch(tap, forward), accepts)
        for cause_detail, function in (
            ("scale at 0", torch.zeros_like),
            ("scale at 1", torch.ones_like),
        ):
            yield _fault(
                "positional-encoding",
                tap,
                cause_detail,
                edit(f"{tap}.scale", function),
                ("tensor-not-loaded",),
            )


def _pool_faults(network: MoViNet, path: str, tap: str) -> Iterator[Fault]:
    if network.spec.causal and path != "pool":
        for cause, detail, mean, accepts in CUMULATIVE:
            yield _fault(cause, tap, detail, patch(path, _cumulative(mean)), accepts)
    elif not network.spec.causal:
        for cause, detail, clip, accepts in CLIP_POOL:
            yield _fault(
                cause,
                tap,
                detail,
                patch(path, lambda m, r, x, b, n, f=clip: (f(x), r(x, b, n)[1])),
                accepts,
            )
    else:
        yield _fault(
            "pool-divisor",
            tap,
            "divided by the clip's frames",
            patch(path, lambda m, r, x, b, n: (r(x, b, n)[1] / x.shape[2], r(x, b, n)[1])),
            ("se-pooling", "stream-state"),
        )
        yield _fault(
            "stream-state",
            tap,
            "this clip only",
            patch(path, lambda m, r, x, b, n: (x.mean((2, 3, 4), True), r(x, b, n)[1])),
            ("se-pooling", "pool-divisor"),
        )
        yield _fault(
            "unknown",
            tap,
            "the greatest",
            patch(path, lambda m, r, x, b, n: (x.amax((2, 3, 4), True), r(x, b, n)[1])),
            (UNKNOWN, "se-pooling"),
        )
    yield _fault("precision", tap, "bfloat16", patch(path, _result_in_bfloat16))


def _exchanged(network: MoViNet) -> Iterator[Fault]:
    """Yield exchanges of tensors of one shape, next to one another in a list of parameters."""
    state = network.state_dict()
    kinds = {
        "depthwise kernels": "depthwise.conv.weight",
        "temporal kernels": "temporal_conv.weight",
        "projections": "projection.conv.weight",
        "expansions": "expansion.conv.weight",
        "scales": "rezero.scale",
        "position scales": "positional_encoding.scale",
        "reduce biases": "reduce.conv.bias",
        "expand biases": "expand.conv.bias",
        "reduce kernels": "reduce.conv.weight",
        "norm weights": "norm.weight",
        "norm biases": "norm.bias",
        "means": "running_mean",
        "variances": "running_var",
    }
    for label, ending in kinds.items():
        names = [name for name in state if name.endswith(ending)]
        for first, second in itertools.pairwise(names):
            if state[first].shape != state[second].shape:
                continue
            places = at(first.rpartition(".")[0], second.rpartition(".")[0])
            scale = ("rezero",) if label == "scales" else ("positional-encoding",)
            extra = scale if state[first].ndim == 0 else ()
            yield Fault(
                "tensor-swapped",
                places,
                f"{label} exchanged",
                exchange(first, second),
                frozenset(("tensor-swapped", *extra)),
            )
            yield Fault(
                "tensor-swapped",
                places[1:],
                f"{label}: the other's",
                copied(first, second),
                frozenset(("tensor-swapped", *extra)),
            )
    norms = [n for n, m in network.named_modules() if isinstance(m, nn.BatchNorm3d)]
    for first, second in itertools.pairwise(norms):
        if state[f"{first}.weight"].shape == state[f"{second}.weight"].shape:
            yield Fault(
                "tensor-swapped",
                at(first, second),
                "whole norms exchanged",
                in_turn(*(exchange(f"{first}.{leaf}", f"{second}.{leaf}") for leaf in FOUR)),
            )


def _everywhere(network: MoViNet, kind: Callable[[str, Any], bool]) -> list[str]:
    return [name for name, module in network.named_modules() if kind(name, module)]


def _whole_faults(network: MoViNet) -> Iterator[Fault]:
    """Yield one mistake in the converter: the same fault in all layers of a kind."""
    norms = _everywhere(network, lambda n, m: isinstance(m, nn.BatchNorm3d))
    convs = _everywhere(network, lambda n, m: isinstance(m, Conv))
    depthwise = [n for n in convs if n.endswith("depthwise.conv")]
    spatial = [n for n in depthwise if network.get_submodule(n).kernel_size[1] > 1]  # type: ignore[index]
    pointwise = [n for n in convs if network.get_submodule(n).kernel_size == (1, 1, 1)]
    gates = _everywhere(network, lambda n, m: n.endswith("squeeze_excitation.expand.activation"))
    activations = _everywhere(
        network, lambda n, m: n.endswith("activation") and n not in gates and "classifier" not in n
    )
    layers = list(network.layer_names)

    def all_of(
        cause: str, taps: list[str], detail: str, step: Callable[[str], Apply], *also: str
    ) -> Fault:
        return Fault(
            cause,
            at(*taps),
            f"everywhere: {detail}",
            in_turn(*(step(t) for t in taps)),
            frozenset((cause, *also)),
            alone=True,
        )

    yield all_of(
        "norm-epsilon", norms, "1e-5", lambda n: change(n, lambda m: setattr(m, "eps", 1e-5))
    )
    yield all_of("norm-not-in-eval", norms, "train()", lambda n: change(n, lambda m: m.train()))
    yield all_of(
        "norm-stats-swapped",
        norms,
        "mean, variance",
        lambda n: exchange(f"{n}.running_mean", f"{n}.running_var"),
    )
    yield all_of(
        "norm-stats-swapped", norms, "weight, bias", lambda n: exchange(f"{n}.weight", f"{n}.bias")
    )
    yield all_of(
        "tensor-not-loaded",
        norms,
        "statistics",
        lambda n: in_turn(
            edit(f"{n}.running_mean", torch.zeros_like), edit(f"{n}.running_var", torch.ones_like)
        ),
    )
    yield all_of(
        "kernel-layout",
        spatial,
        "height and width",
        lambda n: edit(f"{n}.weight", lambda w: w.transpose(3, 4)),
    )
    yield all_of(
        "kernel-layout",
        pointwise,
        "not transposed",
        lambda n: edit(f"{n}.weight", _tensorflow_bytes),
    )
    yield all_of(
        "kernel-layout",
        depthwise,
        "not transposed",
        lambda n: edit(f"{n}.weight", _tensorflow_bytes),
    )
    yield all_of(
        "kernel-flip",
        spatial,
        "height and width",
        lambda n: edit(f"{n}.weight", lambda w: w.flip(3, 4)),
    )
    yield all_of(
        "padding", ["stem.conv", *spatial], "k // 2", lambda n: patch(n, _padded(_symmetric))
    )
    yield all_of(
        "activation", activations, "relu", lambda n: patch(n, lambda m, r, x: torch.relu(x))
    )
    for detail, function in list(GATES.items())[:5]:
        yield all_of("gate", gates, detail, lambda n, f=function: patch(n, lambda m, r, x: f(x)))
    yield all_of(
        "rezero",
        [f"{n}.rezero" for n in layers],
        "0",
        lambda n: edit(f"{n}.scale", torch.zeros_like),
    )
    yield all_of(
        "precision",
        convs,
        "stored in float16",
        lambda n: edit(f"{n}.weight", lambda w: w.half().to(w)),
    )
    yield all_of(
        "weights-differ",
        convs,
        "fine-tuned",
        lambda n: edit(f"{n}.weight", lambda w: w * (1 + 0.01 * random_like(w))),
    )
    yield all_of("skip-path", layers, "left out", lambda n: patch(n, _bottleneck(SUMS[0][2])))
    pools = [
        f"{n}.skip.pool" for n in layers if getattr(network.get_submodule(n).skip, "pool", None)
    ]  # type: ignore[arg-type]
    if pools:
        yield all_of("pool-divisor", pools, "counts padding", lambda n: patch(n, _pool(same=True)))
    yield Fault(
        "precision", (), "the whole network in bfloat16", lambda n: n.bfloat16(), alone=True
    )
    yield Fault(
        "norm-not-in-eval",
        (),
        "the whole network in train()",
        lambda n: n.train(),
        frozenset(("norm-not-in-eval", UNKNOWN)),
        alone=True,
    )
    yield _fault(
        "unknown", "classifier", "softmax", patch("classifier", lambda m, r, x: r(x).softmax(1))
    )
    yield _fault(
        "unknown", "classifier", "temperature", patch("classifier", lambda m, r, x: r(x) / 1.5)
    )
    yield _fault(
        "unknown",
        "classifier.output.conv",
        "dropout",
        change("classifier.dropout", lambda m: m.train()),
    )
    yield Fault(
        "unknown",
        at(layers[-1]),
        "stochastic depth",
        change(
            f"{layers[-1]}.stochastic_depth", lambda m: (m.train(), setattr(m, "drop_rate", 0.9))
        ),
        frozenset((UNKNOWN, "skip-path", "rezero")),
    )


def _stream_faults(network: MoViNet) -> Iterator[Fault]:
    for name in network.layer_names:
        block: Any = network.get_submodule(f"{name}.depthwise")
        if block.stream_conv.frames_before:
            conv = f"{name}.depthwise.{'temporal_' if block.splits else ''}conv"
            places = ((name, f"{name}.depthwise", f"{name}.stream_buffer", conv),)
            for detail, build in BUFFERS:
                yield Fault("stream-state", places, f"buffer {detail}", build(f"{name}.depthwise"))
        se: Any = network.get_submodule(name).squeeze_excitation
        if se is not None and se.temporal_pool is not None:
            pool = f"{name}.squeeze_excitation.temporal_pool"
            for detail, new in SUMS_CARRIED:
                yield Fault(
                    "stream-state",
                    ((pool, name, f"{name}.pool_buffer"),),
                    f"sum {detail}",
                    patch(pool, _carried(new)),
                )
    for detail, new in SUMS_CARRIED:
        yield Fault(
            "stream-state",
            (("pool", "head", "head.pool_buffer"),),
            f"head's sum {detail}",
            patch("pool", _carried(new)),
        )

    def forget(network: MoViNet, video: Tensor) -> Tensor:
        network.clean_activation_buffers()
        return network(video)

    def rewrite(network: MoViNet, change: Callable[[str, Tensor], Tensor]) -> None:
        stream = network.snapshot()
        assert stream is not None
        state = {name: change(name, value) for name, value in stream.state.items()}
        network.restore(Snapshot(state, stream.shape))

    def uncounted(network: MoViNet, video: Tensor) -> Tensor:
        out = network(video)
        rewrite(network, lambda name, value: 0 * value + 1 if name == FRAME_COUNT else value)
        return out

    def by_clips(network: MoViNet, video: Tensor) -> Tensor:
        stream = network.snapshot()
        before = 0 if stream is None else stream.state[FRAME_COUNT]
        out = network(video)
        rewrite(
            network, lambda name, value: 0 * value + before + 1 if name == FRAME_COUNT else value
        )
        return out

    def restarted(state: str) -> Callable[[MoViNet, Tensor], Tensor]:
        def call(network: MoViNet, video: Tensor) -> Tensor:
            out = network(video)
            rewrite(network, lambda name, value: 0 * value if name.endswith(state) else value)
            return out

        return call

    def stale(network: MoViNet) -> nn.Module:
        with torch.no_grad():
            network(
                torch.rand((*SHAPE[:2], 2, *SHAPE[3:]), generator=torch.Generator().manual_seed(9))
            )
        return network

    # What a whole network forgets is found at the places that needed it: any is the place.
    yield Fault("stream-state", (), "of another video", stale, alone=True)
    for detail, call in (
        ("forgotten between clips", forget),
        ("frames not counted", uncounted),
        ("clips counted, not frames", by_clips),
        ("all buffers zeroed", restarted("stream_buffer")),
        ("all sums zeroed", restarted("pool_buffer")),
        ("count zeroed", restarted("frame_count")),
    ):
        yield Fault("stream-state", (), detail, lambda n, c=call: Around(n, c), alone=True)


# (batch, channels, frames, height, width) of the clip, which a stale state must fit.
SHAPE = [2, 3, 6, 44, 44]


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
                patch(name, _norm_forward())(network)
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
