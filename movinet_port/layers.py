"""The layers of a MoViNet. Every tensor is (batch, channels, frames, height, width).

A layer that remembers something between clips takes what it remembered and returns what it will
need next; nothing in here keeps state of its own. Modules are named so that their path in the
network is the layer's canonical name, and each activation is a module so that it has one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from movinet_port.functions import ACTIVATIONS, GATES
from movinet_port.spec import LayerSpec, ModelSpec, Triple
from movinet_port.stages import ReadableClip, bottleneck

# PyTorch's convention; Keras calls the same running average momentum 0.99.
NORM_MOMENTUM = 0.01


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return how many cells TensorFlow's SAME puts before and after an axis of `size` cells."""
    # No max(..., 0): under torch.jit.trace a size is a tensor, which max would make a constant.
    total = kernel - 1 - (size - 1) % stride if kernel >= stride else 0
    return total // 2, total - total // 2


def legacy_padding(kernel: int) -> tuple[int, int]:
    """Return the spatial padding of the first causal convolutions: the stride is not looked at."""
    return (kernel - 1) // 2, kernel - 1 - (kernel - 1) // 2


class Conv(nn.Conv3d):
    """A convolution that pads as TensorFlow does.

    Space is padded as SAME (or as the legacy causal convolutions did). Time is padded as SAME,
    unless the convolution is causal: then the frames before the clip are the caller's to give.

    The weight is (out channels, in channels / groups, frames, height, width) whatever the kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Triple = (1, 1, 1),
        strides: Triple = (1, 1, 1),
        *,
        groups: int = 1,
        bias: bool = False,
        causal: bool = False,
        legacy: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, strides, groups=groups, bias=bias)
        self.causal = causal
        self.legacy = legacy

    @property
    def frames_before(self) -> int:
        """How many frames before the clip a causal convolution needs."""
        return self.kernel_size[0] - 1 if self.causal else 0

    def padding_for(self, x: Tensor) -> list[int]:
        """Return the padding of `x` in the order of `torch.nn.functional.pad`: last axis first."""
        pads: list[int] = []
        for axis in (2, 1, 0):
            kernel, stride = self.kernel_size[axis], self.stride[axis]
            if axis == 0 and self.causal:
                pads += (0, 0)
            elif self.legacy:
                pads += legacy_padding(kernel)
            else:
                pads += same_padding(x.shape[2 + axis], kernel, stride)
        return pads

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; the frames stay as many, or `frames_before` fewer if causal."""
        if self.kernel_size != (1, 1, 1):
            x = F.pad(x, self.padding_for(x))
        return super().forward(x)

    def inside(self, window: Tensor) -> Tensor:
        """Convolve only where the temporal kernel lies inside the window."""
        x = F.pad(window, [*self.padding_for(window)[:4], 0, 0])
        return F.conv3d(x, self.weight, self.bias, self.stride, groups=self.groups)

    def extra_repr(self) -> str:
        """Say what `torch.nn.Conv3d` does not know."""
        flags = [name for name in ("causal", "legacy") if getattr(self, name)]
        return ", ".join([super().extra_repr(), *flags])


def batch_norm(channels: int, epsilon: float) -> nn.BatchNorm3d:
    """Return a batch normalisation with the reference's momentum."""
    return nn.BatchNorm3d(channels, eps=epsilon, momentum=NORM_MOMENTUM)


class ConvBlock(nn.Module):
    """Convolution, batch normalisation or else a bias, optional activation."""

    def __init__(
        self,
        conv: Conv,
        norm_epsilon: float | None = None,
        activation: type[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.norm = None if norm_epsilon is None else batch_norm(conv.out_channels, norm_epsilon)
        self.activation = activation() if activation else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations of the clip."""
        return self.behind(self.conv(x))

    def behind(self, x: Tensor) -> Tensor:
        """Return what follows the convolution, of its output."""
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x


class StreamConvBlock(ConvBlock):
    """A `ConvBlock` over several frames; split into a spatial and a temporal one for (2+1)D.

    With `spec.splits_time` a kernel of more than one frame becomes a spatial convolution (`conv`,
    `norm`, `activation`) and a temporal one (`temporal_conv`, `temporal_norm`,
    `temporal_activation`). In a causal network the convolution that looks at several frames
    reads the ones before the clip from the stream buffer.
    """

    def __init__(
        self,
        spec: ModelSpec,
        in_channels: int,
        out_channels: int,
        kernel_size: Triple,
        strides: Triple,
        *,
        depthwise: bool = False,
    ) -> None:
        frames, height, width = kernel_size
        groups = in_channels if depthwise else 1
        activation = ACTIVATIONS[spec.activation].module
        splits = spec.splits_time and frames > 1
        conv = Conv(
            in_channels,
            out_channels,
            (1, height, width) if splits else kernel_size,
            strides,
            groups=groups,
            causal=spec.causal,
            legacy=spec.causal_padding == "legacy",
        )
        super().__init__(conv, spec.norm_epsilon, activation)
        self.splits = splits
        if splits:
            self.temporal_conv = Conv(
                out_channels, out_channels, (frames, 1, 1), groups=groups, causal=spec.causal
            )
            self.temporal_norm = batch_norm(out_channels, spec.norm_epsilon)
            self.temporal_activation = activation()

    @property
    def stream_conv(self) -> Conv:
        """The convolution that looks at several frames."""
        return self.temporal_conv if self.splits else self.conv

    def forward(  # type: ignore[override]  # a stream layer hands its buffer on
        self, x: Tensor, buffer: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the activations, and the stream buffer for the next clip.

        Args:
            x: the clip.
            buffer: the frames before the clip, as `movinet_port.streams.state_shapes` has them: at
                the output resolution in front of a temporal convolution, at the input resolution
                in front of a 3-D one. None for black ones.
        """
        x, buffer = self._with_buffer(self.before_time(x), buffer)
        return self.behind(self.stream_conv(x)), buffer

    def before_time(self, x: Tensor) -> Tensor:
        """Return what comes before the convolution over frames: a split-off spatial part."""
        return super().behind(self.conv(x)) if self.splits else x

    def behind(self, x: Tensor) -> Tensor:
        """Return what follows the convolution over frames, of its output."""
        if self.splits:
            split: Tensor = self.temporal_activation(self.temporal_norm(x))
            return split
        return super().behind(x)

    def _with_buffer(self, x: Tensor, buffer: Tensor | None) -> tuple[Tensor, Tensor | None]:
        size = self.stream_conv.frames_before
        if size == 0:
            return x, None
        if buffer is None:
            buffer = x.new_zeros(x.shape[0], x.shape[1], size, x.shape[3], x.shape[4])
        x = torch.cat([buffer, x], dim=2)
        # A copy, because a view would keep the whole clip alive until the next one.
        return x, x[:, :, -size:].clone()


class AveragePool(nn.Module):
    """3 x 3 average pool with stride 2, SAME; cells of the padding are not counted.

    Or, with `counts_padding`, after one black cell on every side, which is counted.
    """

    def __init__(self, counts_padding: bool = False) -> None:
        super().__init__()
        self.counts_padding = counts_padding

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, channels, frames, ceil(height / 2), ceil(width / 2))."""
        if self.counts_padding:
            pooled = F.avg_pool2d(x.flatten(1, 2), 3, 2, 1)
            return pooled.unflatten(1, (x.shape[1], x.shape[2]))
        pads = [*same_padding(x.shape[4], 3, 2), *same_padding(x.shape[3], 3, 2)]

        def window_sum(planes: Tensor) -> Tensor:
            return F.avg_pool2d(F.pad(planes, pads), 3, 2, divisor_override=1)

        # Each frame of each channel by itself; the 3-D pool has no half precision on a CPU.
        total = window_sum(x.flatten(1, 2))
        count = window_sum(x.new_ones(1, 1, x.shape[3], x.shape[4]))
        return (total / count).unflatten(1, (x.shape[1], x.shape[2]))


class SkipProjection(ConvBlock):
    """The residual branch where channels or resolution change: pool if strided, 1x1, norm."""

    def __init__(self, spec: ModelSpec, layer: LayerSpec) -> None:
        super().__init__(Conv(layer.in_filters, layer.out_filters), spec.norm_epsilon)
        self.pool = AveragePool(spec.pool_counts_padding) if layer.downsamples else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the projected residual."""
        return super().forward(x if self.pool is None else self.pool(x))


class Scale(nn.Module):
    """Multiplication by one learned scalar, 0 at the start (ReZero, arXiv 2003.04887)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` scaled."""
        return self.scale * x


def encoding_rates(channels: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Return by how much the angle of each channel's sinusoid grows from frame to frame.

    Of these (channels,) the even ones are of sines and the odd ones of cosines, and the reference
    does not interleave them: all sines come first, then all cosines.
    """
    index = torch.arange(channels, device=device)
    power = (2 * (index // 2)).to(dtype) / channels
    return 1.0 / torch.pow(torch.as_tensor(10_000.0, dtype=dtype, device=device), power)


class PositionalEncoding(Scale):
    """A sinusoid of the frame's number in the video, times one learned scalar."""

    def forward(  # type: ignore[override]  # it adds the scaled sinusoid instead
        self, x: Tensor, first_frame: Tensor
    ) -> Tensor:
        """Return `x`, (batch, channels, frames, 1, 1), with the encoding added.

        Args:
            x: the pooled channels.
            first_frame: (batch,) number of the first frame of `x` in its video.
        """
        channels, frames = x.shape[1], x.shape[2]
        dtype = at_least_float32(x.dtype)
        rate = encoding_rates(channels, dtype, x.device)
        position = first_frame[:, None] + torch.arange(frames, device=x.device)
        angle = rate[None, :, None] * position[:, None, :].to(dtype)
        waves = torch.cat([torch.sin(angle[:, 0::2]), torch.cos(angle[:, 1::2])], dim=1)
        return x + super().forward(waves.to(x.dtype))[:, :, :, None, None]


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which sums over a video are kept: half types lose count."""
    # Not torch.promote_types, which compilers take for an operation of the network.
    return torch.float64 if dtype == torch.float64 else torch.float32


class CumulativePool(nn.Module):
    """Mean over space and over all frames of the video so far, one mean after each frame."""

    def forward(
        self, x: Tensor, buffer: Tensor | None, frame_count: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the means, (batch, channels, frames, 1, 1), and the sum for the next clip.

        Args:
            x: the clip.
            buffer: (batch, channels, 1, 1, 1) sum of the spatial means of all frames before.
            frame_count: (batch,) how many frames those were.
        """
        dtype = at_least_float32(x.dtype)
        total = torch.cumsum(x.mean(dim=(3, 4), keepdim=True, dtype=dtype), dim=2)
        if buffer is not None:
            total = total + buffer
        seen = frame_count[:, None] + torch.arange(1, x.shape[2] + 1, device=x.device)
        mean = total / seen[:, None, :, None, None].to(dtype)
        return mean.to(x.dtype), total[:, :, -1:].clone()


class ClipPool(nn.Module):
    """Mean over space and time: of the clip, or of the video so far where a sum is carried on."""

    def forward(
        self, x: Tensor, buffer: Tensor | None, frame_count: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the mean, (batch, channels, 1, 1, 1), and the sum for the next clip.

        Args as in `CumulativePool.forward`.
        """
        total = self.frame_sum(x)
        if buffer is not None:
            total = total + buffer
        seen = (frame_count + x.shape[2]).to(total.dtype)
        return (total / seen[:, None, None, None, None]).to(x.dtype), total

    def frame_sum(self, x: Tensor) -> Tensor:
        """Return the sum over frames of the mean over space, (batch, channels, 1, 1, 1)."""
        dtype = at_least_float32(x.dtype)
        return x.sum(dim=(2, 3, 4), keepdim=True, dtype=dtype) / (x.shape[3] * x.shape[4])


class SpatialPool(nn.Module):
    """Mean over space."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, channels, frames, 1, 1)."""
        return x.mean(dim=(3, 4), keepdim=True)


class SqueezeExcitation(nn.Module):
    """Channel gates computed from what the clip, or the video so far, shows on average."""

    def __init__(self, spec: ModelSpec, channels: int) -> None:
        super().__init__()
        pooled = spec.se_pooled_filters(channels)
        hidden = spec.se_hidden_filters(channels)
        self.spatial_pool = SpatialPool() if spec.se_type in ("2d", "2plus3d") else None
        self.temporal_pool: CumulativePool | ClipPool | None = None
        if spec.se_type in ("3d", "2plus3d"):
            self.temporal_pool = CumulativePool() if spec.causal else ClipPool()
        self.positional_encoding = PositionalEncoding() if spec.positional_encoding else None
        self.reduce = ConvBlock(
            Conv(pooled, hidden, bias=True), activation=ACTIVATIONS[spec.activation].module
        )
        gate = GATES[spec.gate].module
        self.expand = ConvBlock(Conv(hidden, channels, bias=True), activation=gate)

    def forward(
        self, x: Tensor, buffer: Tensor | None, frame_count: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the gated `x`, and the sum that the pool carries to the next clip.

        Args as in `CumulativePool.forward`.
        """
        spatial = self.spatial_pool(x) if self.spatial_pool is not None else None
        temporal = None
        if self.temporal_pool is not None:
            # The mean of the frames' means is the mean, and the frames' means are small.
            temporal, buffer = self.temporal_pool(
                x if spatial is None else spatial, buffer, frame_count
            )
        return self.gates(temporal, spatial, frame_count) * x, buffer

    def gates(
        self, temporal: Tensor | None, spatial: Tensor | None, frame_count: Tensor | None = None
    ) -> Tensor:
        """Return the gates, (batch, channels, frames or 1, 1, 1).

        Args:
            temporal: what the pool over time returns, if there is one.
            spatial: what the pool over space returns, if there is one.
            frame_count: (batch,) frames before, where there is a positional encoding.
        """
        pooled = spatial if temporal is None else temporal
        if temporal is not None and spatial is not None:
            pooled = torch.cat([temporal.expand_as(spatial), spatial], dim=1)
        if self.positional_encoding is not None:
            pooled = self.positional_encoding(pooled, frame_count)
        gates: Tensor = self.expand(self.reduce(pooled))
        return gates


class StochasticDepth(nn.Module):
    """In training, drop the whole branch of random clips of the batch, and scale up the rest."""

    def __init__(self, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with dropped clips at 0; `x` itself in evaluation."""
        if not self.training or self.drop_rate == 0:
            return x
        keep = 1.0 - self.drop_rate
        mask = x.new_empty(x.shape[0], 1, 1, 1, 1).bernoulli_(keep)
        return x * (mask / keep if keep > 0 else mask)

    def extra_repr(self) -> str:
        """Show the rate."""
        return f"drop_rate={self.drop_rate:g}"


class Bottleneck(nn.Module):
    """Expansion, depthwise convolution, squeeze-excitation, projection, ReZero, residual."""

    def __init__(self, spec: ModelSpec, layer: LayerSpec, drop_rate: float) -> None:
        super().__init__()
        activation = ACTIVATIONS[spec.activation].module
        width = layer.expand_filters
        self.expansion = ConvBlock(Conv(layer.in_filters, width), spec.norm_epsilon, activation)
        self.depthwise = StreamConvBlock(
            spec, width, width, layer.kernel_size, layer.strides, depthwise=True
        )
        self.squeeze_excitation = SqueezeExcitation(spec, width) if spec.se_type != "none" else None
        self.projection = ConvBlock(Conv(width, layer.out_filters), spec.norm_epsilon)
        self.rezero = Scale()
        self.stochastic_depth = StochasticDepth(drop_rate)
        self.skip = SkipProjection(spec, layer) if layer.has_skip_projection else None

    def forward(
        self,
        x: Tensor,
        stream_buffer: Tensor | None,
        pool_buffer: Tensor | None,
        frame_count: Tensor,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the output, the next stream buffer and the next pool buffer."""
        stages = ReadableClip(stream_buffer, pool_buffer, frame_count)
        return bottleneck(stages, self, x), stages.stream_buffer, stages.pool_buffer


class Classifier(nn.Module):
    """Two 1x1 convolutions with biases; the first has an activation and dropout behind it."""

    def __init__(self, spec: ModelSpec, dropout: float) -> None:
        super().__init__()
        width = spec.head.head_filters
        self.hidden = ConvBlock(
            Conv(spec.head.project_filters, width, bias=True),
            activation=ACTIVATIONS[spec.classifier_activation].module,
        )
        self.dropout = nn.Dropout(dropout)
        self.output = ConvBlock(Conv(width, spec.num_classes, bias=True))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (batch, classes), of the pooled head, (batch, channels, 1, 1, 1)."""
        logits: Tensor = self.output(self.dropout(self.hidden(x)))
        return logits.flatten(1)
