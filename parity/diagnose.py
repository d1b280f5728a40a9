"""Why a layer introduces an error: hypotheses, each tried on the reference's own input.

A hypothesis recomputes the layer in float64 with one thing changed. It is reported only if that
brings the error to the floor; if none does, the cause is "unknown". `HYPOTHESES` is the table of
what is tried for which kind of layer.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from movinet_port.layers import (
    ACTIVATIONS,
    GATES,
    AveragePool,
    Bottleneck,
    Conv,
    PositionalEncoding,
    Scale,
    SqueezeExcitation,
    legacy_padding,
    same_padding,
)
from parity.compare import Comparison
from parity.flow import Flow
from parity.report import SUSPECT, Diagnosis, Report, status_of
from parity.taps import INPUT

# A tensor is another one if no value differs by more than this share of the largest.
EQUAL = 1e-6
# What bfloat16, the coarsest type that networks run in, can do to one layer's output.
LARGEST_PRECISION_LOSS = 2e-2
# A line through fewer points than this says nothing.
FEWEST_FOR_A_LINE = 16

Tensors: TypeAlias = list[Tensor]


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A hypothesis that fits: `after` is the error left, in floor units."""

    cause: str
    detail: str
    mend: str
    after: float
    parameter: str | None = None


class Site:
    """One layer that introduces an error, and all that is known about it.

    Attributes:
        tap, path, module: the layer.
        before: error that it introduces, in floor units.
        expected: the reference's output for each chunk, float64.
        args: what the module got in each chunk while all taps were forced.
        outputs: what it gave.
        inputs: the reference's own first argument of it for each chunk, float64.
        truth: the reference's tensors of this module, by name inside the module; may be empty.
        everything: the reference's tensors of the whole network.
        own: the network's tensors.
    """

    def __init__(
        self,
        comparison: Comparison,
        tap: str,
        captured: Sequence[tuple[tuple[Any, ...], Any]],
        parameters: Mapping[str, Tensor],
        flow: Flow | None,
    ) -> None:
        self.comparison = comparison
        self.flow = flow
        self.tap = tap
        self.path = comparison.subject.path(tap) if tap != INPUT else INPUT
        self.module = comparison.subject.modules[tap]
        self.before = comparison.error(tap)
        self.floor = comparison.floor(tap)
        self.expected: Tensors = [
            torch.from_numpy(moment.activations[tap]).double() for moment in comparison.moments
        ]
        self.args = [args for args, _ in captured]
        self.outputs: Tensors = [
            (out[0] if isinstance(out, (tuple, list)) else out).double() for _, out in captured
        ]
        self.given: Tensors = [
            args[0].double() if args and isinstance(args[0], Tensor) else torch.empty(0)
            for args in self.args
        ]
        known = flow.inputs(tap) if flow is not None else None
        self.inputs: Tensors = known if known is not None else self.given
        self.everything = parameters
        self.own = comparison.subject.parameters()
        prefix = f"{self.path}."
        self.truth = {
            name.removeprefix(prefix): value.double()
            for name, value in parameters.items()
            if name.startswith(prefix) and "." not in name.removeprefix(prefix)
        }

    def score(self, outputs: Sequence[Tensor]) -> float:
        """Return the error of recomputed outputs, in floor units."""
        return distance(outputs, self.expected) / self.floor

    def fits(self, outputs: Sequence[Tensor]) -> bool:
        """Whether recomputed outputs are the reference's."""
        return status_of(self.score(outputs)) == "match"

    def reproduces(self, outputs: Sequence[Tensor]) -> bool:
        """Whether recomputed outputs are what the layer gave."""
        magnitude = rms(self.outputs)
        return distance(outputs, self.outputs) <= 1e-4 * magnitude or (
            distance(outputs, self.outputs) / self.floor < SUSPECT
        )

    def parameter(self, name: str) -> str:
        """Return the full name of one of the module's parameters."""
        return f"{self.path}.{name}"


def rms(values: Sequence[Tensor]) -> float:
    """Return the root mean square over several tensors."""
    count = sum(value.numel() for value in values)
    return math.sqrt(sum(float((v.double() ** 2).sum()) for v in values) / max(count, 1))


def distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the root mean square difference; infinite where it has none."""
    if any(a.shape != b.shape for a, b in zip(found, expected, strict=True)):
        return math.inf
    value = rms([a - b for a, b in zip(found, expected, strict=True)])
    return value if math.isfinite(value) else math.inf


def equal(a: Tensor, b: Tensor, tolerance: float = EQUAL) -> bool:
    """Whether two tensors have the same shape and values."""
    if a.shape != b.shape or not a.numel():
        return False
    a, b = a.double(), b.double()
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


def diagnose(
    comparison: Comparison, report: Report, parameters: Mapping[str, Tensor]
) -> tuple[Diagnosis, ...]:
    """Explain every layer and stream state that introduces an error.

    Args:
        comparison: its runs.
        report: says which layers; of its states, those after each chunk.
        parameters: the reference's, under the network's names, as far as they are known.
    """
    taps = [layer.name for layer in report.layers if layer.introduces]
    subject = comparison.subject
    captured = subject.capture(
        comparison.parts, comparison.forced, frozenset(tap for tap in taps if tap != INPUT)
    )
    flow = Flow(comparison) if subject.network is not None else None
    found: list[Diagnosis] = []
    for tap in taps:
        if tap == INPUT:
            found += _of_input(comparison)
            continue
        if len(captured[tap]) != len(comparison.parts):
            found.append(_not_run(comparison, tap))
            continue
        site = Site(comparison, tap, captured[tap], parameters, flow)
        found += explain(site)
    if flow is not None:
        found += _of_states(comparison, report, flow, found)
    return tuple(found)


def explain(site: Site) -> list[Diagnosis]:
    """Try every hypothesis that there is for this kind of layer."""
    explanations: list[Explanation] = []
    for kinds, hypothesis in HYPOTHESES:
        if isinstance(site.module, kinds):
            explanations += hypothesis(site)
        if explanations:
            break
    # The same computation with other numbers explains whatever the others explain.
    if any(e.cause != "weights-differ" for e in explanations):
        parameters = {e.parameter for e in explanations if e.cause != "weights-differ"}
        explanations = [
            e
            for e in explanations
            if e.cause != "weights-differ" or (e.parameter and e.parameter not in parameters)
        ]
    if not explanations:
        return [_unknown(site.tap, site.before)]
    unique = dict.fromkeys(explanations)
    return [
        Diagnosis(site.tap, e.parameter, e.cause, e.detail, site.before, e.after, e.mend)
        for e in unique
    ]


def _unknown(tap: str, before: float) -> Diagnosis:
    return Diagnosis(
        tap,
        None,
        "unknown",
        "no hypothesis brings the layer to the floor",
        before,
        None,
        f"Compare what {tap} computes with the reference by hand.",
    )


# What a module is given


def _wrong_input(site: Site) -> Iterator[Explanation]:
    """The layer is right, and is given something else than the reference's."""
    if site.flow is None or not site.given[0].numel():
        return
    changes = site.flow.wrong_arguments(site.tap, site.args)
    if not changes:
        return
    outputs = site.flow.recompute(site.tap, site.module)
    after = site.score(outputs) if outputs is not None else math.inf
    if status_of(after) != "match":
        return
    for change in changes:
        yield Explanation(change.cause, change.detail, change.mend, after, change.parameter)


def _precision(
    site: Site, exact: Tensors, what: str = "computes", *, guess: bool = True
) -> Iterator[Explanation]:
    """The layer does what it should, in fewer bits.

    Args:
        site: the layer.
        exact: what it should give, and what it would give in all bits.
        what: how the detail begins.
        guess: whether noise of the right size is enough; else only values of a narrower type are.
    """
    after = site.score(exact)
    if status_of(after) != "match" or not _same_shapes(site.outputs, exact):
        return
    lost = distance(site.outputs, exact)
    if not 0 < lost <= LARGEST_PRECISION_LOSS * rms(exact):
        return
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(out, out.to(dtype).double()) for out in site.outputs):
            name = str(dtype).removeprefix("torch.")
            yield Explanation(
                "precision", f"{what} in {name}", f"Run {site.tap} in float32.", after
            )
            return
    if guess and not _systematic(site.outputs, exact):
        bits = max(1, round(-math.log2(lost / rms(exact))))
        yield Explanation(
            "precision",
            f"{what} with about {bits} bits instead of 24",
            f"Run {site.tap} in float32, without autocast or TF32.",
            after,
        )


def _same_shapes(a: Tensors, b: Tensors) -> bool:
    return all(x.shape == y.shape for x, y in zip(a, b, strict=True))


def _systematic(found: Tensors, exact: Tensors) -> bool:
    """Whether an error follows the values, as rounding's does not: a factor, an offset."""
    if exact[0].ndim < 2:
        return False
    x, y = _by_channel(exact), _by_channel(found)
    if x.shape[1] < FEWEST_FOR_A_LINE:
        x, y = x.reshape(1, -1), y.reshape(1, -1)
    if x.shape[1] < FEWEST_FOR_A_LINE:
        return False
    error = y - x
    left = error - _line(x, error)
    return float((left**2).sum()) < 0.5 * float((error**2).sum())


def _by_channel(values: Tensors) -> Tensor:
    """Return (channels, everything else) of all chunks."""
    return torch.cat([v.movedim(1, 0).flatten(1) for v in values], dim=1)


def _line(x: Tensor, y: Tensor) -> Tensor:
    """Return the factor and offset of `x` that come closest to `y`, row by row, applied."""
    mean_x, mean_y = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    square = ((x - mean_x) ** 2).mean(1, keepdim=True).clamp_min(1e-30)
    slope = ((x - mean_x) * (y - mean_y)).mean(1, keepdim=True) / square
    return slope * (x - mean_x) + mean_y


# Parameters


def explain_parameter(
    name: str, own: Tensor, truth: Tensor, others: Mapping[str, Tensor]
) -> list[tuple[str, str, str]]:
    """Say how a tensor relates to the one that should be there.

    Args:
        name: of the parameter.
        own: the tensor that is there.
        truth: the reference's.
        others: the reference's tensors, by name.

    Returns:
        (cause, detail, mend), all that hold.
    """
    own, truth = own.double(), truth.double()
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(own, truth.to(dtype).double()):
            kind = str(dtype).removeprefix("torch.")
            return [("precision", f"stored in {kind}", f"Load {name} in float32.")]
    found: list[tuple[str, str, str]] = []
    if truth.ndim > 1 and own.numel() == truth.numel():
        found += [
            ("kernel-layout", f"it is the reference's tensor with {how}", f"{undo} {name}.")
            for how, undo, value in arrangements(truth)
            if equal(own, value)
        ]
        found += [
            ("kernel-flip", f"it is reversed along {axes}", f"Flip {name} along {axes}.")
            for axes, value in flips(truth)
            if equal(own, value)
        ]
    if found:
        return found
    found += [
        ("tensor-swapped", f"it holds {other}", f"Load {name} from its own tensor, not {other}.")
        for other, value in others.items()
        if other != name and own.numel() > 1 and equal(own, value)
    ]
    if found:
        return found
    default = _constant(name, own)
    if default is not None:
        return [("tensor-not-loaded", default, f"Load {name}; it was left as created.")]
    scale = float((own * truth).sum() / (truth * truth).sum()) if truth.abs().max() > 0 else 0.0
    if scale not in (0.0, 1.0) and own.numel() > 1 and equal(own, scale * truth, 1e-5):
        return [
            (
                "tensor-scaled",
                f"it is {scale:.6g} times the reference's",
                f"Divide {name} by {scale:.6g}.",
            )
        ]
    axis = _reordered_along(own, truth)
    if axis is not None:
        return [
            (
                "weights-differ",
                f"it is the reference's tensor with axis {axis} in another order",
                f"Put {name} in the reference's order along axis {axis}.",
            )
        ]
    default = _spread_like_initial(own)
    if default is not None and not _alike(own, truth):
        return [("tensor-not-loaded", default, f"Load {name}; it was left as created.")]
    return [
        (
            "weights-differ",
            f"it differs by {_share(own, truth):.2g} of its size",
            f"Convert {name} again from this reference.",
        )
    ]


def _alike(own: Tensor, truth: Tensor) -> bool:
    """Whether one tensor could have become the other by a little training."""
    a, b = own.flatten() - own.mean(), truth.flatten() - truth.mean()
    return float(a @ b) > 0.5 * float(a.norm() * b.norm())


def _share(own: Tensor, truth: Tensor) -> float:
    return distance([own], [truth]) / max(rms([truth]), 1e-30)


def _reordered_along(own: Tensor, truth: Tensor) -> int | None:
    """Return the axis along which one tensor's slices are the other's in another order."""
    if own.shape != truth.shape:
        return None
    for axis in range(own.ndim):
        if own.shape[axis] < 2:
            continue
        a, b = (v.movedim(axis, 0).reshape(v.shape[axis], -1) for v in (own, truth))
        far, nearest = torch.cdist(a, b).min(dim=1)
        same = float(far.max()) <= EQUAL * float(b.norm(dim=1).max())
        if same and sorted(nearest.tolist()) == list(range(len(b))):
            return axis
    return None


def _default(name: str, own: Tensor) -> str | None:
    """Return what a tensor looks like if it has the values that layers are created with."""
    return _constant(name, own) or _spread_like_initial(own)


def _constant(name: str, own: Tensor) -> str | None:
    """Return the one value of a tensor that was left at it."""
    leaf = name.rpartition(".")[2]
    created = 1.0 if own.ndim <= 1 and leaf in ("weight", "running_var") else 0.0
    if own.numel() and bool((own == created).all()):
        return f"every value is {created:g}"
    return None


def _spread_like_initial(own: Tensor) -> str | None:
    if own.ndim <= 1 or own.numel() < 64:
        return None
    fan_in, count = own[0].numel(), own.numel()
    spread, mean = float(own.std()), abs(float(own.mean()))
    # This project's own initial values, and PyTorch's for convolutions and linear layers.
    for what, expected in (
        ("kaiming normal", math.sqrt(2 / fan_in)),
        ("kaiming uniform", math.sqrt(1 / (3 * fan_in))),
        ("the classifier's", 0.01),
    ):
        # Four standard errors of a standard deviation, and of a mean.
        near = abs(spread / expected - 1) < 4 / math.sqrt(2 * count)
        if near and mean < expected * 4 / math.sqrt(count):
            return f"its values are spread like initial ones ({what})"
    return None


def arrangements(tensor: Tensor) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (how, how to undo it, tensor) for every other order of axes with the same shape."""
    shape = tensor.shape
    seen = [tensor]

    def new(value: Tensor) -> bool:
        if value.shape != shape or any(torch.equal(value, old) for old in seen):
            return False
        seen.append(value)
        return True

    for order in itertools.permutations(range(tensor.ndim)):
        permuted = tensor.permute(order)
        if new(permuted):
            yield f"axes in the order {order}", "Put back the axes of", permuted
    for order in itertools.permutations(range(tensor.ndim)):
        # Written in another order and read as if it were this one.
        folded = tensor.permute(order).reshape(shape)
        if new(folded):
            yield f"axes read from the order {order}", "Read in the right order", folded


_AXES = {5: ["batch", "channels", "frames", "height", "width"], 4: ["out", "in", "height", "width"]}


def flips(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield (axes, tensor) for every way to reverse a kernel in time and space."""
    names = _AXES.get(tensor.ndim, [str(axis) for axis in range(tensor.ndim)])
    axes = [axis for axis in range(2, tensor.ndim) if tensor.shape[axis] > 1]
    for count in range(1, len(axes) + 1):
        for chosen in itertools.combinations(axes, count):
            yield ", ".join(names[axis] for axis in chosen), tensor.flip(chosen)


def _parameters(
    site: Site, compute: Callable[[Mapping[str, Tensor]], Tensors], names: Sequence[str]
) -> Iterator[Explanation]:
    """The layer is right, and its tensors are not: the reference's own ones, or ours rearranged."""
    own = _tensors(site.module, names)
    wrong = [
        name
        for name in names
        if name in own and name in site.truth and not _same(own[name], site.truth[name])
    ]
    if wrong:
        after = site.score(compute({**own, **{name: site.truth[name] for name in wrong}}))
        if status_of(after) == "match":
            # What makes no difference to the output is no cause.
            needed = [
                name
                for name in wrong
                if len(wrong) == 1
                or status_of(
                    site.score(compute({**own, **{n: site.truth[n] for n in wrong if n != name}}))
                )
                != "match"
            ]
            for name in needed:
                full = site.parameter(name)
                for cause, detail, mend in explain_parameter(
                    full, own[name], site.truth[name], site.everything
                ):
                    yield Explanation(cause, detail, mend, after, full)
            return
    yield from _rearranged(site, compute, own, names)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.double(), b.double())


def _rearranged(
    site: Site,
    compute: Callable[[Mapping[str, Tensor]], Tensors],
    own: Mapping[str, Tensor],
    names: Sequence[str],
) -> Iterator[Explanation]:
    """Our own tensors in another order, or another one of them, do what the reference does."""
    for name in names:
        if name not in own:
            continue
        full, value = site.parameter(name), own[name]
        if value.ndim > 1:
            for how, _, tensor in arrangements(value):
                if status_of(after := site.score(compute({**own, name: tensor}))) == "match":
                    yield Explanation(
                        "kernel-layout",
                        f"right with {how}",
                        f"Put the axes of {full} in another order.",
                        after,
                        full,
                    )
            for axes, tensor in flips(value):
                if status_of(after := site.score(compute({**own, name: tensor}))) == "match":
                    yield Explanation(
                        "kernel-flip",
                        f"right when reversed along {axes}",
                        f"Flip {full} along {axes}.",
                        after,
                        full,
                    )
        for other, tensor in site.own.items():
            if other == full or tensor.shape != value.shape or not tensor.is_floating_point():
                continue
            if status_of(after := site.score(compute({**own, name: tensor.double()}))) == "match":
                yield Explanation(
                    "tensor-swapped",
                    f"its tensor is in {other}",
                    f"Load into {full} what is in {other}.",
                    after,
                    full,
                )


def _tensors(module: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    found = {name: getattr(module, name, None) for name in names}
    return {name: v.detach().double() for name, v in found.items() if isinstance(v, Tensor)}


# Convolutions and linear layers


def _affine(
    module: nn.Module, x: Tensor, tensors: Mapping[str, Tensor], pads: list[int] | None = None
) -> Tensor:
    weight, bias = tensors["weight"], tensors.get("bias")
    if isinstance(module, nn.Linear):
        return F.linear(x, weight, bias)
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    if pads is None:
        pads = _declared_padding(module, x)
    run = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.ndim]
    stride, dilation = tuple(module.stride), tuple(module.dilation)
    return run(F.pad(x, pads), weight, bias, stride, 0, dilation, module.groups)


def _declared_padding(module: Any, x: Tensor) -> list[int]:
    """Return the padding that a convolution's attributes speak of, last axis first."""
    if isinstance(module, Conv):
        return module.padding_for(x) if module.kernel_size != (1, 1, 1) else [0] * 6
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [n for total in reversed(totals) for n in (total // 2, total - total // 2)]
    padding = [0] * (x.ndim - 2) if module.padding == "valid" else list(module.padding)
    return [n for amount in reversed(padding) for n in (amount, amount)]


def _affine_layer(site: Site) -> Iterator[Explanation]:
    module, names = site.module, ("weight", "bias")
    own = _tensors(module, names)

    def compute(tensors: Mapping[str, Tensor]) -> Tensors:
        try:
            return [_affine(module, x, tensors) for x in site.inputs]
        except RuntimeError:  # Shapes that do not fit: no hypothesis.
            return [torch.full_like(value, math.inf) for value in site.expected]

    exact = compute(own)
    if site.fits(exact):
        # The attributes are right, so the module does something that they do not say.
        way = _pads_with(site, own, exact)
        if way is not None:
            yield Explanation("padding", *way, site.score(exact))
            return
        yield from _precision(site, exact)
        return
    found = list(_parameters(site, compute, names))
    if not isinstance(module, nn.Linear):
        found += _padding(site, own)
    if not found:
        found += _fitted(site, own)
    yield from found


def _pairs(pads: Sequence[int]) -> str:
    pairs = [(pads[i], pads[i + 1]) for i in range(len(pads) - 2, -1, -2)]
    names = ("frames", "height", "width")[-len(pairs) :]
    return ", ".join(f"{n} {pair}" for n, pair in zip(names, pairs, strict=True) if any(pair))


_PAD_MODES = ("replicate", "reflect", "circular")


def _pads_with(site: Site, own: Mapping[str, Tensor], exact: Tensors) -> tuple[str, str] | None:
    """Return (detail, mend) if a module pads otherwise than it says, None if it does not."""
    module: Any = site.module
    if isinstance(module, nn.Linear) or max(module.kernel_size) == 1:
        return None
    declared = _declared_padding(module, site.inputs[0])
    zeros = f"Pad the input of {site.tap} with zeros, as TensorFlow does."
    if distance(site.outputs, exact) <= LARGEST_PRECISION_LOSS * rms(exact):
        return None  # Less than what any other padding does.
    for mode in _PAD_MODES:
        try:
            outputs = [
                _affine(module, F.pad(x, _declared_padding(module, x), mode=mode), own, [0] * 6)
                for x in site.inputs
            ]
        except (RuntimeError, NotImplementedError):
            continue
        if site.reproduces(outputs):
            return f"pads in mode {mode!r}, the reference with zeros", zeros
    for name, pads in _paddings(site, declared):
        try:
            outputs = [_affine(module, x, own, pads) for x in site.inputs]
        except RuntimeError:
            continue
        if site.reproduces(outputs):
            ours, theirs = (_pairs(p) or "nothing" for p in (pads, declared))
            mend = f"Pad the input of {site.tap} by {theirs}."
            return f"pads {ours} ({name}), the reference {theirs}", mend
    if _only_at_borders(site, exact):
        return "pads otherwise than with zeros", zeros
    return None


def _only_at_borders(site: Site, exact: Tensors) -> bool:
    """Whether the layer's output is right wherever its window lies inside the input."""
    module: Any = site.module
    inner, right = [], []
    for x, out, wanted in zip(site.inputs, site.outputs, exact, strict=True):
        if out.shape != wanted.shape:
            return False
        pads = _declared_padding(module, x)
        index: list[slice] = [slice(None), slice(None)]
        for axis, (k, s) in enumerate(zip(module.kernel_size, module.stride, strict=True)):
            before = pads[-2 * (axis + 1)]
            size = x.shape[2 + axis]
            inside = [i for i in range(out.shape[2 + axis]) if 0 <= i * s - before <= size - k]
            if not inside:
                return False
            index.append(slice(inside[0], inside[-1] + 1))
        inner.append(out[tuple(index)])
        right.append(wanted[tuple(index)])
    return distance(inner, right) / site.floor < SUSPECT


def _padding(site: Site, own: Mapping[str, Tensor]) -> Iterator[Explanation]:
    """Another rule of padding, by name or else by trying all."""
    module: Any = site.module
    if max(module.kernel_size) == 1:
        return
    declared = _declared_padding(module, site.inputs[0])
    for name, pads in _paddings(site, declared):
        try:
            after = site.score([_affine(module, value, own, pads) for value in site.inputs])
        except RuntimeError:
            continue
        if status_of(after) == "match":
            rules = _padding_rules(site).items()
            is_rule = next((n for n, p in rules if p == declared), "its own rule")
            yield Explanation(
                "padding",
                f"pads {_pairs(declared) or 'nothing'} ({is_rule}), "
                f"the reference {_pairs(pads) or 'nothing'} ({name})",
                f"Pad the input of {site.tap} by {name}.",
                after,
            )
            return


def _padding_rules(site: Site) -> dict[str, list[int]]:
    """Return what every rule that has a name pads, last axis first."""
    module: Any = site.module
    size = site.inputs[0].shape[2:]
    causal = isinstance(module, Conv) and module.causal

    def rule(pair: Callable[[int, int, int], tuple[int, int]]) -> list[int]:
        pads: list[int] = []
        for axis in reversed(range(len(module.kernel_size))):
            n, k, s = size[axis], module.kernel_size[axis], module.stride[axis]
            pads += (0, 0) if causal and axis == 0 else pair(n, k, s)
        return pads

    return {
        "TensorFlow's SAME": rule(same_padding),
        "legacy (k - 1, whatever the stride)": rule(lambda n, k, s: legacy_padding(k)),
        "symmetric (k // 2 on both sides)": rule(lambda n, k, s: (k // 2, k // 2)),
        "none": rule(lambda n, k, s: (0, 0)),
    }


def _paddings(site: Site, declared: list[int]) -> Iterator[tuple[str, list[int]]]:
    """Yield every other padding once: those of named rules first."""
    tried = [declared]
    for name, pads in itertools.chain(_padding_rules(site).items(), _other_paddings(site)):
        if pads not in tried:
            tried.append(pads)
            yield name, pads


def _other_paddings(site: Site) -> Iterator[tuple[str, list[int]]]:
    module: Any = site.module
    size, out = site.inputs[0].shape[2:], site.expected[0].shape[2:]
    options: list[list[tuple[int, int]]] = []
    for axis in reversed(range(len(size))):
        k, s = module.kernel_size[axis], module.stride[axis]
        least = (out[axis] - 1) * s + k - size[axis]
        options.append(
            [
                (before, total - before)
                for total in range(max(least, 0), max(least, 0) + s)
                for before in range(total + 1)
            ]
        )
    for pairs in itertools.islice(itertools.product(*options), 300):
        yield "a rule of its own", [n for pair in pairs for n in pair]


def _fitted(site: Site, own: Mapping[str, Tensor]) -> Iterator[Explanation]:
    """Other numbers in the same layer do what the reference does: solved for, least squares."""
    module: Any = site.module
    solved = _solve(module, site.inputs, site.expected, "bias" in own)
    if solved is None:
        return
    after = site.score([_affine(module, x, solved) for x in site.inputs])
    if status_of(after) != "match":
        return
    share = {name: _share(own[name], value) for name, value in solved.items()}
    name = max(share, key=lambda key: share[key])
    full = site.parameter(name)
    scale = float((own[name] * solved[name]).sum() / (solved[name] ** 2).sum())
    if own[name].numel() > 1 and equal(own[name], scale * solved[name], 1e-3):
        yield Explanation(
            "tensor-scaled",
            f"it is {scale:.4g} times what fits",
            f"Divide {full} by {scale:.4g}.",
            after,
            full,
        )
        return
    default = None if _alike(own[name], solved[name]) else _default(full, own[name])
    yield Explanation(
        "tensor-not-loaded" if default else "weights-differ",
        default or f"other numbers fit, {share[name]:.2g} of its size away",
        f"Load {full} again from the reference.",
        after,
        full,
    )


def _solve(module: Any, inputs: Tensors, expected: Tensors, bias: bool) -> dict[str, Tensor] | None:
    """Return weights of a 1 x 1 convolution or linear layer that fit, if data determine them."""
    if isinstance(module, nn.Linear):
        x, y = (torch.cat([v.reshape(-1, v.shape[-1]) for v in vs]) for vs in (inputs, expected))
    elif set(module.kernel_size) == {1} and module.groups == 1 and set(module.stride) == {1}:
        x, y = (
            torch.cat([v.movedim(1, -1).reshape(-1, v.shape[1]) for v in vs])
            for vs in (inputs, expected)
        )
    else:
        return None
    # Fewer equations than this many per unknown would fit anything.
    if x.shape[0] < 4 * (x.shape[1] + 1):
        return None
    columns = torch.cat([x, x.new_ones(x.shape[0], 1)], dim=1) if bias else x
    solution = torch.linalg.lstsq(columns, y).solution.T
    weight = solution[:, : x.shape[1]].reshape(module.weight.shape)
    return {"weight": weight, "bias": solution[:, -1]} if bias else {"weight": weight}


# Normalisation

_NORM = ("weight", "bias", "running_mean", "running_var")
_EPSILONS = (1e-3, 1e-5, 1e-6, 1e-4, 1e-2, 1e-8, 0.0)


def _norm(site: Site) -> Iterator[Explanation]:
    module: Any = site.module
    own = _tensors(module, _NORM)

    def compute(tensors: Mapping[str, Tensor], eps: float | None = None) -> Tensors:
        shape = (1, -1, *[1] * (site.inputs[0].ndim - 2))
        epsilon = module.eps if eps is None else eps
        scale = tensors["weight"] / torch.sqrt(tensors["running_var"] + epsilon)
        shift = tensors["bias"] - tensors["running_mean"] * scale
        return [x * scale.view(shape) + shift.view(shape) for x in site.inputs]

    if "weight" not in own or "bias" not in own:
        return
    # Without statistics of its own it can only use the clip's; the reference's show what is right.
    whole = {**{name: site.truth[name] for name in _NORM if name in site.truth}, **own}
    if len(whole) != len(_NORM):
        return
    exact = compute(whole)
    if site.reproduces(_by_clip_statistics(site, own)) and not site.reproduces(exact):
        right = exact
        if not site.fits(exact) and len(site.truth) == len(_NORM):
            right = compute(site.truth)
            if site.fits(right):
                yield from _parameters(site, compute, _NORM)
        if site.fits(right):
            yield Explanation(
                "norm-not-in-eval",
                "normalises by the statistics of the clip",
                f"Call eval() on {site.path}.",
                site.score(right),
            )
        return
    if len(own) != len(_NORM):
        return
    if site.fits(exact):
        yield from _precision(site, exact)
        return
    found: list[Explanation] = []
    for eps in _EPSILONS:
        if status_of(after := site.score(compute(own, eps))) == "match":
            detail = f"adds {module.eps:g} to the variance, the reference {eps:g}"
            mend = f"Set the epsilon of {site.path} to {eps:g}."
            found.append(Explanation("norm-epsilon", detail, mend, after, None))
            break
    for order in itertools.permutations(_NORM):
        if order == _NORM:
            continue
        moved = {name: own[other] for name, other in zip(_NORM, order, strict=True)}
        if status_of(after := site.score(compute(moved))) == "match":
            pairs = [f"{n} is in {o}" for n, o in zip(_NORM, order, strict=True) if n != o]
            found.append(
                Explanation(
                    "norm-stats-swapped",
                    ", ".join(pairs),
                    f"Exchange them in {site.path}.",
                    after,
                    site.parameter(next(n for n, o in zip(_NORM, order, strict=True) if n != o)),
                )
            )
    found = found or list(_parameters(site, compute, _NORM))
    if not found:
        found = list(_fitted_norm(site))
    yield from found


def _by_clip_statistics(site: Site, own: Mapping[str, Tensor]) -> Tensors:
    """Return what normalising each chunk by its own mean and variance gives."""
    outputs = []
    for x in site.inputs:
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean = x.mean(axes, keepdim=True)
        spread = torch.sqrt(((x - mean) ** 2).mean(axes, keepdim=True) + _epsilon(site.module))
        outputs.append((x - mean) / spread * own["weight"].view(shape) + own["bias"].view(shape))
    return outputs


def _epsilon(module: Any) -> float:
    return float(module.eps)


def _fitted_norm(site: Site) -> Iterator[Explanation]:
    """One factor and one offset for each channel do what the reference does."""
    if not _same_shapes(site.inputs, site.expected):
        return
    x, y = _by_channel(site.inputs), _by_channel(site.expected)
    if x.shape[1] < FEWEST_FOR_A_LINE:
        return
    after = distance([_line(x, y)], [y]) / site.floor
    if status_of(after) == "match":
        yield Explanation(
            "weights-differ",
            "another factor and offset for each channel fit",
            f"Load the tensors of {site.path} again from the reference.",
            after,
            site.parameter("weight"),
        )


# Activations and gates

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: kind() for name, kind in {**ACTIVATIONS, **GATES}.items()},
    "hard_sigmoid (x + 3) / 6": F.hardsigmoid,
    "linear": lambda x: x,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu (tanh)": lambda x: F.gelu(x, approximate="tanh"),
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "softplus": F.softplus,
    "mish": F.mish,
}


def _elementwise(site: Site) -> Iterator[Explanation]:
    if any(a.shape != b.shape for a, b in zip(site.inputs, site.expected, strict=True)):
        return
    ours = "something else"
    right: list[tuple[str, float]] = []
    closest = math.inf
    for name, function in _FUNCTIONS.items():
        outputs = [function(x) for x in site.inputs]
        if status_of(after := site.score(outputs)) == "match":
            right.append((name, after))
        if (far := distance(outputs, site.outputs)) < closest:
            closest = far
            if far <= 1e-5 * rms(site.outputs) + 1e-12:
                ours = name
    for name, _ in right:
        exact = [_FUNCTIONS[name](x) for x in site.inputs]
        if ours in (name, "something else"):
            slow = list(_precision(site, exact))
            if slow:
                yield from slow
                return
    cause = "gate" if site.tap.endswith("expand.activation") else "activation"
    for name, after in right:
        yield Explanation(
            cause,
            f"computes {ours}, the reference {name}",
            f"Use {name} in {site.tap}.",
            after,
        )


# Pools, scalars, sums


def _window_average(x: Tensor, pads: list[int], include: bool) -> Tensor:
    def window_sum(values: Tensor) -> Tensor:
        return F.avg_pool3d(F.pad(values, pads), (1, 3, 3), (1, 2, 2), divisor_override=1)

    if include:
        return window_sum(x) / 9
    return window_sum(x) / window_sum(torch.ones_like(x[:1, :1, :1]))


def _average_pool(site: Site) -> Iterator[Explanation]:
    size, out = site.inputs[0].shape[3:], site.expected[0].shape[3:]
    options: list[list[tuple[int, int]]] = []
    for n, m in zip(size, out, strict=True):
        least = max((m - 1) * 2 + 3 - n, 0)
        options.append([(b, t - b) for t in range(least, least + 2) for b in range(t + 1)])
    right: tuple[list[int], bool, float] | None = None
    ours: tuple[list[int], bool] | None = None
    for height, width in itertools.product(*options):
        for include in (False, True):
            pads = [*width, *height]
            if max(pads) > 2:
                continue
            outputs = [_window_average(x, pads, include) for x in site.inputs]
            after = site.score(outputs)
            if right is None and status_of(after) == "match":
                right = (pads, include, after)
            if ours is None and site.reproduces(outputs):
                ours = (pads, include)
    if right is None:
        return
    pads, include, after = right
    if ours is not None and ours[0] == pads and ours[1] == include:
        exact = [_window_average(x, pads, include) for x in site.inputs]
        yield from _precision(site, exact)
        return
    if ours is not None and ours[0] != pads:
        yield Explanation(
            "padding",
            f"pads {_pairs(ours[0])}, the reference {_pairs(pads)}",
            f"Pad {site.tap} by {_pairs(pads)}, as TensorFlow's SAME.",
            after,
        )
        return
    if ours is not None or _ratio_only(site):
        counts = "counts" if include else "does not count"
        yield Explanation(
            "pool-divisor",
            f"divides by another number of cells; the reference {counts} padded ones",
            f"Divide by the cells inside the clip in {site.tap}.",
            after,
        )


def _ratio_only(site: Site) -> bool:
    """Whether each cell is a multiple of the reference's, the same for all channels."""
    for out, right in zip(site.outputs, site.expected, strict=True):
        if out.shape != right.shape:
            return False
        ratio = (out * right).sum(dim=(0, 1)) / (right * right).sum(dim=(0, 1))
        if distance([out], [ratio * right]) > 1e-5 * rms([right]):
            return False
    return True


def _pool(site: Site) -> Iterator[Explanation]:
    """A mean over space, or over space and time, or over the video so far."""
    cause = "se-pooling" if "squeeze_excitation" in site.tap else "pool-divisor"
    candidates = _means(site)
    right = {name: out for name, out in candidates.items() if site.fits(out)}
    ours = next((n for n, out in candidates.items() if site.reproduces(out)), "something else")
    if ours in right or ours == "something else":
        slow = [e for exact in right.values() for e in _precision(site, exact)]
        if slow:
            yield slow[0]
            return
    if cause == "pool-divisor" and not ("mean" in ours or "sum" in ours or _ratio_only(site)):
        cause = "unknown"
    for name, outputs in right.items():
        yield Explanation(
            cause,
            f"gives {ours}, the reference {name}",
            f"Make {site.tap} {name}.",
            site.score(outputs),
        )


def _means(site: Site) -> dict[str, Tensors]:
    assert site.flow is not None
    before = site.flow.pools_before(site.tap)
    candidates: dict[str, Tensors] = {}
    for number, x in enumerate(site.inputs):
        space = x.mean(dim=(3, 4), keepdim=True)
        sums = torch.cumsum(space, dim=2)
        frames = torch.arange(1, x.shape[2] + 1, dtype=torch.float64).view(1, 1, -1, 1, 1)
        total, seen = before[number]
        values = {
            "the mean over the video so far, after each frame": (sums + total) / (frames + seen),
            "the mean over the video so far": (sums[:, :, -1:] + total) / (x.shape[2] + seen),
            "the mean of the clip": space.mean(dim=2, keepdim=True),
            "the mean of each frame": space,
            "the mean over the clip so far, after each frame": sums / frames,
            "the maximum over space": x.amax(dim=(3, 4), keepdim=True),
            "the maximum of the clip": x.amax(dim=(2, 3, 4), keepdim=True),
            "the sum over the video so far": sums[:, :, -1:] + total,
            "the sum over the video so far, after each frame": sums + total,
            "the last frame's mean": space[:, :, -1:],
        }
        shape = site.expected[number].shape
        for name, value in values.items():
            if value.shape != shape and value.shape[2] == 1 and shape[3:] == (1, 1):
                value = value.expand(shape)
            candidates.setdefault(name, []).append(value)
    return candidates


def _scale(site: Site) -> Iterator[Explanation]:
    module: Any = site.module
    own = float(module.scale.detach())
    exact = [own * x for x in site.inputs]
    if site.fits(exact):
        slow = list(_precision(site, exact))
        if slow:
            yield from slow
            return
    square = sum(float((x * x).sum()) for x in site.inputs)
    product = sum(float((x * y).sum()) for x, y in zip(site.inputs, site.expected, strict=True))
    fitted = product / square if square else 0.0
    applied = sum(float((x * y).sum()) for x, y in zip(site.inputs, site.outputs, strict=True)) / (
        square or 1.0
    )
    after = site.score([fitted * x for x in site.inputs])
    if status_of(after) != "match":
        return
    full = site.parameter("scale")
    others = [
        name
        for name, value in site.everything.items()
        if name != full
        and name.endswith("rezero.scale")
        and own != 0
        and abs(float(value) - own) <= EQUAL * abs(own)
    ]
    if abs(own - fitted) <= 1e-5 * abs(fitted):
        yield Explanation(
            "rezero",
            f"scales by {applied:.6g}, the parameter and the reference by {fitted:.6g}",
            f"Multiply the branch by {full}.",
            after,
            full,
        )
        return
    left = " (as created)" if own == 0 else ""
    yield Explanation(
        "rezero",
        f"scales by {own:.6g}{left}, the reference by {fitted:.6g}",
        f"Load {full}.",
        after,
        full,
    )
    for other in others:
        yield Explanation(
            "tensor-swapped", f"it holds {other}", f"Load {full} from its own tensor.", after, full
        )


def _positional_encoding(site: Site) -> Iterator[Explanation]:
    """Which sinusoid, from which frame on, times which scalar."""
    assert site.flow is not None
    module: Any = site.module
    own = float(module.scale.detach())
    added = [y - x for x, y in zip(site.inputs, site.expected, strict=True)]
    ours = [y - x for x, y in zip(site.inputs, site.outputs, strict=True)]
    first = site.flow.frames_before()
    found: list[tuple[str, float, float]] = []
    applied: tuple[str, float] | None = None
    for kind in _WAVES:
        for offset in (0, 1, -1):
            waves = [
                _wave(kind, x.shape[1], x.shape[2], n + offset).expand_as(x)
                for x, n in zip(site.inputs, first, strict=True)
            ]
            name = kind if not offset else f"{kind}, {offset:+d} frame"
            scale, far = _fit(waves, added)
            after = far / site.floor
            if status_of(after) == "match":
                found.append((name, scale, after))
            scale, far = _fit(waves, ours)
            if applied is None and far <= 1e-5 * rms(site.outputs):
                applied = (name, scale)
    if rms(ours) == 0 and own != 0:
        applied = ("nothing", 0.0)
    for name, scale, after in found[:1]:
        full = site.parameter("scale")
        if applied is None:
            exact = [x + a for x, a in zip(site.inputs, added, strict=True)]
            slow = list(_precision(site, exact, guess=False))
            if slow:
                yield from slow
                return
            yield Explanation(
                "positional-encoding",
                f"adds something else than {name}",
                f"Add {name}, times {full}.",
                after,
                full,
            )
        elif abs(applied[1] - scale) <= 1e-4 * abs(scale) and applied[0] != name:
            yield Explanation(
                "positional-encoding",
                f"adds {applied[0]}, the reference {name}",
                f"Add {name} in {site.tap}.",
                after,
                full,
            )
        else:
            yield Explanation(
                "positional-encoding",
                f"adds {applied[0]} times {applied[1]:.6g}, the reference {name} times {scale:.6g}",
                f"Load {full}, or add {name}.",
                after,
                full,
            )


def _fit(waves: Tensors, added: Tensors) -> tuple[float, float]:
    square = sum(float((w * w).sum()) for w in waves)
    scale = sum(float((w * a).sum()) for w, a in zip(waves, added, strict=True)) / square
    return scale, distance([scale * w for w in waves], added)


_WAVES = ("all sines, then all cosines", "sines and cosines in turn", "all cosines, then all sines")


def _wave(kind: str, channels: int, frames: int, first: int) -> Tensor:
    index = torch.arange(channels, dtype=torch.float64)
    rate = torch.pow(torch.tensor(10_000.0, dtype=torch.float64), -(2 * (index // 2)) / channels)
    angle = rate[:, None] * (first + torch.arange(frames, dtype=torch.float64))[None]
    sines, cosines = torch.sin(angle[0::2]), torch.cos(angle[1::2])
    if kind == _WAVES[0]:
        value = torch.cat([sines, cosines])
    elif kind == _WAVES[2]:
        value = torch.cat([torch.cos(angle[0::2]), torch.sin(angle[1::2])])
    else:
        value = torch.empty_like(angle)
        value[0::2], value[1::2] = sines, cosines
    return value[None, :, :, None, None]


def _combination(
    site: Site, cause: str, parts: Mapping[str, Tensors], right: str, texts: Mapping[str, Tensors]
) -> Iterator[Explanation]:
    exact = texts[right]
    if not site.fits(exact):
        return
    slow = list(_precision(site, exact))
    if slow:
        yield from slow
        return
    for name, function in _FUNCTIONS.items():
        if name != "linear" and site.reproduces([function(x) for x in exact]):
            yield Explanation(
                "activation",
                f"gives {name} of {right}, the reference {right}",
                f"Take the activation behind {site.tap} out.",
                site.score(exact),
            )
            return
    ours = next((n for n, out in texts.items() if n != right and site.reproduces(out)), None)
    ours = ours or _linear(site, parts)
    if ours is not None:
        yield Explanation(
            cause,
            f"gives {ours}, the reference {right}",
            f"Make {site.tap} {right}.",
            site.score(exact),
        )


def _linear(site: Site, parts: Mapping[str, Tensors]) -> str | None:
    """Return the output as a combination of parts, if it is one."""
    usable = {
        name: values
        for name, values in parts.items()
        if all(a.shape == b.shape for a, b in zip(values, site.outputs, strict=True))
    }
    if not usable:
        return None
    columns = torch.stack([torch.cat([v.flatten() for v in vs]) for vs in usable.values()], 1)
    target = torch.cat([out.flatten() for out in site.outputs])
    solution = torch.linalg.lstsq(columns, target[:, None]).solution[:, 0]
    if distance([columns @ solution], [target]) > 1e-4 * rms([target]):
        return None
    terms = [
        f"{float(s):.4g} x {name}"
        for s, name in zip(solution, usable, strict=True)
        if abs(float(s)) > 1e-4
    ]
    return " + ".join(terms) or "nothing"


def _residual_sum(site: Site) -> Iterator[Explanation]:
    assert site.flow is not None
    parts = site.flow.residual_parts(site.tap)
    branch, skip = parts["the branch"], parts["the skip"]
    both = [a + b for a, b in zip(branch, skip, strict=True)]
    texts = {"the branch plus the skip": both, **parts}
    if "the layer's input" in parts:
        same = [a.shape == b.shape for a, b in zip(branch, parts["the layer's input"], strict=True)]
        if all(same):
            texts["the branch plus the layer's input, not projected"] = [
                a + b for a, b in zip(branch, parts["the layer's input"], strict=True)
            ]
    yield from _combination(site, "skip-path", parts, "the branch plus the skip", texts)


def _gated_product(site: Site) -> Iterator[Explanation]:
    assert site.flow is not None
    gate, x = site.flow.gate_parts(site.tap)
    product = [g * v for g, v in zip(gate, x, strict=True)]
    texts = {
        "the gate times the input": product,
        "the input, not gated": x,
        "the gate squared times the input": [g * p for g, p in zip(gate, product, strict=True)],
        "the input plus the gated input": [p + v for p, v in zip(product, x, strict=True)],
    }
    parts = {"the input": x, "the gated input": product}
    parts["the gate"] = [g.expand_as(v) for g, v in zip(gate, x, strict=True)]
    yield from _combination(site, "gate", parts, "the gate times the input", texts)


def _unchanged(site: Site) -> Iterator[Explanation]:
    """Nothing but another shape or type happens here: precision only."""
    if all(a.numel() == b.numel() for a, b in zip(site.inputs, site.expected, strict=True)):
        exact = [x.reshape(y.shape) for x, y in zip(site.inputs, site.expected, strict=True)]
        yield from _precision(site, exact)


_POOLS = ("spatial_pool", "temporal_pool", "pool")


def _leaf(site: Site) -> Iterator[Explanation]:
    if any(True for _ in site.module.parameters()):
        return
    if site.flow is not None and site.tap.rpartition(".")[2] in _POOLS:
        yield from _pool(site)
    else:
        yield from _elementwise(site)


Hypothesis: TypeAlias = Callable[[Site], Iterator[Explanation]]

# Kinds of module -> what is tried for it; in this order, until something fits.
HYPOTHESES: tuple[tuple[tuple[type[nn.Module], ...], Hypothesis], ...] = (
    ((nn.Module,), _wrong_input),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear), _affine_layer),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _norm),
    ((AveragePool,), _average_pool),
    ((PositionalEncoding,), _positional_encoding),
    ((Scale,), _scale),
    ((Bottleneck,), _residual_sum),
    ((SqueezeExcitation,), _gated_product),
    ((nn.Module,), _leaf),
    ((nn.Module,), _unchanged),
)


# The input


def _of_input(comparison: Comparison) -> list[Diagnosis]:
    """Explain what was done to the clip on its way into the network."""
    before = comparison.error(INPUT)
    # The input of the forced run is what the network was given, before it was replaced.
    given = [record.activations[INPUT].double() for record in comparison.own]
    right = [torch.from_numpy(part).double() for part in comparison.parts]
    for cause, detail, mend, undone in _input_changes(given, right):
        after = distance(undone, right) / comparison.floor(INPUT)
        if status_of(after) == "match":
            return [Diagnosis(INPUT, None, cause, detail, before, after, mend)]
    return [_unknown(INPUT, before)]


def _input_changes(given: Tensors, right: Tensors) -> Iterator[tuple[str, str, str, Tensors]]:
    shapes = all(a.shape == b.shape for a, b in zip(given, right, strict=True))
    channels = right[0].shape[1]
    if shapes:
        for order in itertools.permutations(range(channels)) if channels <= 4 else ():
            undone = [x[:, list(order)] for x in given]
            yield (
                "channel-order",
                f"channels in the order {tuple(order.index(i) for i in range(channels))}",
                "Give the channels in the order red, green, blue.",
                undone,
            )
        yield from _rescaled(given, right)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = [x.to(dtype).double() for x in right]
        if shapes and distance(given, rounded) == 0:
            kind = str(dtype).removeprefix("torch.")
            yield "precision", f"rounded to {kind}", "Give the clip in float32.", right
    yield from _reordered(given, right)
    for order in itertools.permutations(range(right[0].ndim)):
        for read in (False, True):
            undone = []
            for x, y in zip(given, right, strict=True):
                if x.numel() != y.numel():
                    return
                shape = [y.shape[axis] for axis in order]
                inverse = [order.index(axis) for axis in range(y.ndim)]
                if not read and tuple(x.shape) != tuple(shape):
                    break
                undone.append(x.reshape(shape).permute(inverse))
            if len(undone) == len(right):
                yield (
                    "input-layout",
                    f"axes in the order {order}" + (", read as if they were not" if read else ""),
                    "Give the clip as (batch, channels, frames, height, width).",
                    undone,
                )


def _rescaled(given: Tensors, right: Tensors) -> Iterator[tuple[str, str, str, Tensors]]:
    """The same for all channels, or a factor and an offset for each."""
    x = torch.cat([v.movedim(1, 0).flatten(1) for v in given], dim=1)
    y = torch.cat([v.movedim(1, 0).flatten(1) for v in right], dim=1)
    for each in (False, True):
        a, b = (x, y) if each else (x.reshape(1, -1), y.reshape(1, -1))
        mean_a, mean_b = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
        square = ((b - mean_b) ** 2).mean(1, keepdim=True).clamp_min(1e-30)
        slope = ((a - mean_a) * (b - mean_b)).mean(1, keepdim=True) / square
        offset = mean_a - slope * mean_b
        if bool((slope.abs() < 1e-12).any()) or not bool(torch.isfinite(slope).all()):
            continue
        # In units of what was given, whose own rounding is the limit.
        limit = 4e-7 * float(a.abs().max())
        if float((a - slope * b - offset).abs().max()) > limit:
            continue
        text = ", ".join(
            f"{float(s):.4g} x {float(o):+.4g}" for s, o in zip(slope, offset, strict=True)
        )
        yield (
            "input-scaling",
            f"the clip became {text}",
            "Give RGB in [0, 1].",
            right,
        )
        return


def _reordered(given: Tensors, right: Tensors) -> Iterator[tuple[str, str, str, Tensors]]:
    """Each frame is one of the reference's, at another place."""
    ours, theirs = torch.cat(given, dim=2), torch.cat(right, dim=2)
    if ours.shape[:2] != theirs.shape[:2] or ours.shape[3:] != theirs.shape[3:]:
        return
    a, b = (v.movedim(2, 0).flatten(1) for v in (ours, theirs))
    far = torch.cdist(a, b)
    nearest = far.argmin(dim=1)
    if float(far.gather(1, nearest[:, None]).max()) > EQUAL * float(b.norm(dim=1).max()):
        return
    order = nearest.tolist()
    missing = sorted(set(range(b.shape[0])) - set(order))
    if order == list(range(b.shape[0])):
        return
    if order == list(reversed(range(b.shape[0]))):
        detail = "the frames come in reverse"
    elif missing and order == sorted(order):
        detail = f"frame {', '.join(map(str, missing))} is missing"
        if len(set(order)) < len(order):
            detail += ", another is repeated"
    else:
        detail = f"the frames come in the order {order}"
    yield "frame-order", detail, "Give every frame once, in the order of the video.", right


# Stream states, and what does not run at all


def _not_run(comparison: Comparison, tap: str) -> Diagnosis:
    before = comparison.error(tap)
    if ".skip" not in tap:
        return _unknown(tap, before)
    return Diagnosis(
        tap,
        None,
        "skip-path",
        "the network does not run it",
        before,
        0.0,
        f"Add the output of {tap.rpartition('.')[0]} to the branch.",
    )


def _of_states(
    comparison: Comparison, report: Report, flow: Flow, found: Sequence[Diagnosis]
) -> Iterator[Diagnosis]:
    """Explain states that are wrong though all that they are made of is right."""
    known = {d.parameter for d in found if d.cause == "stream-state"}
    input_wrong = any(d.layer == INPUT for d in found)
    seen: set[str] = set()
    for state in report.states:
        if state.introduced is None or status_of(state.introduced) == "match":
            continue
        if state.name in known or state.name in seen or input_wrong:
            continue
        seen.add(state.name)
        own = comparison.layer_states[state.chunk].states[state.name].double()
        change = flow.explain_state(state.name, state.chunk, own)
        yield Diagnosis(
            flow.owner(state.name),
            state.name,
            change.cause,
            change.detail,
            state.introduced,
            0.0 if change.cause != "unknown" else None,
            change.mend,
        )
