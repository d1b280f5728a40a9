"""Exact algebra that turns a readable MoViNet into the few tensors that inference needs.

All of it is computed in float64, so that folding rounds each number once:

- batch normalisation goes into the convolution before it;
- the 1 x 1 convolutions become matrices, the temporal taps of a convolution come apart;
- ReZero's scale goes into the projection;
- what projections and residual branches add to every pixel alike is never added: a layer hands on
  its output less a constant per channel (`FoldedLayer.offset`), and the next layers' biases make up
  for it. That is exact, because nothing between two layers pads or is not linear;
- frames may be turned by 180 degrees (`turned`), so that no kernel must grow (`StreamConv._grown`);
- the hard sigmoids' slope and constant go into the squeeze-excitation's second matrix.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from movinet_port.errors import SpecError
from movinet_port.functions import GATES
from movinet_port.layers import (
    Bottleneck,
    Conv,
    ConvBlock,
    SqueezeExcitation,
    StreamConvBlock,
)
from movinet_port.model import MoViNet
from movinet_port.spec import ModelSpec


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A 1 x 1 convolution: weight (out, in), bias (out,) or None."""

    weight: Tensor
    bias: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class FoldedConv:
    """A `StreamConvBlock`: spatial kernels, one for each frame they look at, or a temporal part.

    Attributes:
        spatial: (frames, out, in / groups, height, width); of one frame where time is split off.
        bias: (out,).
        temporal: the split-off taps: (frames, out) if depthwise, else (frames, out, in); or None.
        temporal_bias: (out,), or None.
        stride: of height and width.
        turned: whether it computes frames that are turned by 180 degrees.
    """

    spatial: Tensor
    bias: Tensor
    temporal: Tensor | None
    temporal_bias: Tensor | None
    stride: tuple[int, int]
    groups: int
    turned: bool = False


@dataclasses.dataclass(frozen=True)
class FoldedGate:
    """A squeeze-excitation: two matrices, and where a hard gate is cut off.

    Attributes:
        reduce, expand: the matrices; a hard gate's slope is in `expand`.
        limit: a hard gate is clamped to [0, limit]; None for a sigmoid.
        encoding: () the positional encoding's scale, or None without one.
    """

    reduce: Matrix
    expand: Matrix
    limit: float | None
    encoding: Tensor | None


@dataclasses.dataclass(frozen=True)
class FoldedLayer:
    """A bottleneck; `skip` is the residual branch's matrix, without bias, or None for identity.

    `offset`, (out,), is what the layer's true output has more than the computed one.
    """

    expansion: Matrix
    depthwise: FoldedConv
    gate: FoldedGate | None
    projection: Tensor
    skip: Tensor | None
    offset: Tensor


@dataclasses.dataclass(frozen=True)
class Folded:
    """A whole network."""

    spec: ModelSpec
    stem: FoldedConv
    layers: dict[str, FoldedLayer]
    head: Matrix
    hidden: Matrix
    output: Matrix


@torch.no_grad()
def fold(model: MoViNet) -> Folded:
    """Return the folded tensors of a network, in float64, as ``model.eval()`` computes.

    The network is not changed, and shares no memory with the result.

    Raises:
        SpecError: its weights are on the meta device.
    """
    weight = model.stem.conv.weight
    if weight.is_meta:
        raise SpecError(
            f"{model.spec.name} {model.spec.mode} is on the meta device and has no weights to "
            f"optimise; load or create it on the CPU"
        )
    layers: dict[str, FoldedLayer] = {}
    offset = torch.zeros(model.spec.stem.filters, dtype=torch.float64, device=weight.device)
    for name in model.layer_names:
        layers[name] = _layer(model._layer(name), model.spec, offset)
        offset = layers[name].offset
    return Folded(
        spec=model.spec,
        stem=_stream_conv(model.stem),
        layers=layers,
        head=_shifted(_matrix(model.head), offset),
        hidden=_matrix(model.classifier.hidden),
        output=_matrix(model.classifier.output),
    )


def turned(folded: Folded) -> Folded:
    """Return the network for frames turned by 180 degrees, which gives the same logits.

    Where SAME pads one cell more on one side, that is after the frame, and so before the turned
    one; equal padding of both sides does as well, because a stride leaves out the last cell. A
    stream's state would be turned too, and a kernel that is smaller than its stride, or padding
    that does not look at the stride, would see other cells: such networks are returned as they are.
    """
    convs = [folded.stem, *(layer.depthwise for layer in folded.layers.values())]
    fit = all(
        size % 2 and size >= stride
        for conv in convs
        for size, stride in zip(conv.spatial.shape[3:], conv.stride, strict=True)
    )
    spec = folded.spec
    if spec.causal or spec.causal_padding == "legacy" or spec.pool_counts_padding or not fit:
        return folded

    def turn(conv: FoldedConv) -> FoldedConv:
        return dataclasses.replace(conv, spatial=conv.spatial.flip(3, 4), turned=True)

    layers = {
        name: dataclasses.replace(layer, depthwise=turn(layer.depthwise))
        for name, layer in folded.layers.items()
    }
    return dataclasses.replace(folded, stem=turn(folded.stem), layers=layers)


def _norm(norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Return what a normalisation multiplies by and adds, in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _copy(parameter: Tensor) -> Tensor:
    """Return a float64 copy, of a float64 parameter too, that knows nothing of gradients."""
    return parameter.detach().to(torch.float64, copy=True)


def _affine(conv: Conv, norm: nn.BatchNorm3d | None) -> tuple[Tensor, Tensor]:
    """Return the convolution's 5-D weight and its bias, the normalisation in them."""
    weight = _copy(conv.weight)
    bias = weight.new_zeros(conv.out_channels) if conv.bias is None else _copy(conv.bias)
    if norm is None:
        return weight, bias
    scale, shift = _norm(norm)
    return weight * scale[:, None, None, None, None], bias * scale + shift


def _matrix(block: ConvBlock) -> Matrix:
    weight, bias = _affine(block.conv, block.norm)
    return Matrix(weight.flatten(1), bias)


def _shifted(matrix: Matrix, offset: Tensor) -> Matrix:
    """Return the matrix for an input that lacks `offset`."""
    assert matrix.bias is not None
    return Matrix(matrix.weight, matrix.bias + matrix.weight @ offset)


def _stream_conv(block: StreamConvBlock) -> FoldedConv:
    weight, bias = _affine(block.conv, block.norm)
    temporal = temporal_bias = None
    if block.splits:
        taps, temporal_bias = _affine(block.temporal_conv, block.temporal_norm)
        temporal = taps[:, :, :, 0, 0].permute(2, 0, 1)
        if block.conv.groups > 1:
            temporal = temporal[:, :, 0]
    _, *stride = block.conv.stride
    return FoldedConv(
        spatial=weight.permute(2, 0, 1, 3, 4),
        bias=bias,
        temporal=temporal,
        temporal_bias=temporal_bias,
        stride=(stride[0], stride[1]),
        groups=block.conv.groups,
    )


def _gate(se: SqueezeExcitation, spec: ModelSpec) -> FoldedGate:
    reduce, expand = _matrix(se.reduce), _matrix(se.expand)
    limit = None
    line = GATES[spec.gate].line
    if line is not None:
        slope, constant, limit = dataclasses.astuple(line)
        assert expand.bias is not None
        expand = Matrix(expand.weight * slope, expand.bias * slope + constant)
    encoding = se.positional_encoding
    return FoldedGate(reduce, expand, limit, None if encoding is None else _copy(encoding.scale))


def _layer(layer: Bottleneck, spec: ModelSpec, offset: Tensor) -> FoldedLayer:
    projection = _matrix(layer.projection)
    rezero = layer.rezero.scale.double()
    assert projection.bias is not None
    added = projection.bias * rezero
    skip = None
    if layer.skip is not None:
        # The pool before it averages, and the average of a constant is the constant.
        residual = _shifted(_matrix(layer.skip), offset)
        assert residual.bias is not None
        skip, carried = residual.weight, residual.bias
    else:
        carried = offset
    return FoldedLayer(
        expansion=_shifted(_matrix(layer.expansion), offset),
        depthwise=_stream_conv(layer.depthwise),
        gate=None if layer.squeeze_excitation is None else _gate(layer.squeeze_excitation, spec),
        projection=projection.weight * rezero,
        skip=skip,
        offset=carried + added,
    )
