"""How each kind of file lays out a kernel's axes, as one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Whose axes a kernel has.
Layout = Literal["tensorflow", "torch"]

# Axes of a kernel -> axes of a PyTorch weight, which is always
# (out, in / groups, frames, height, width). One entry per kernel layout:
#   Conv3D, depthwise as groups too   (frames, height, width, in / groups, out)
#   Conv2D                            (height, width, in, out)
#   DepthwiseConv2D                   (height, width, channels, 1)
#   Dense                             (in, out)
#   PyTorch's, 3-D, 2-D and linear    as it should be, but for the axes that are lacking
# A temporal convolution over reshaped frames has its frames where Conv2D has the height.
_AXES: dict[str, tuple[int, ...]] = {
    "conv3d": (4, 3, 0, 1, 2),
    "conv2d": (3, 2, 0, 1),
    "depthwise_conv2d": (2, 3, 0, 1),
    "dense": (1, 0),
    "torch_conv3d": (0, 1, 2, 3, 4),
    "torch_conv2d": (0, 1, 2, 3),
    "torch_linear": (0, 1),
}


def kernel_layout(layout: Layout, parameter: str, rank: int) -> str:
    """Return the key in the table of axes of a kernel of this rank, by what it is for."""
    if layout == "torch":
        return {5: "torch_conv3d", 2: "torch_linear"}.get(rank, "torch_conv2d")
    if rank in (5, 2):
        return "conv3d" if rank == 5 else "dense"
    # All that the authors' code makes of a depthwise convolution in 2-D is DepthwiseConv2D.
    return "depthwise_conv2d" if "depthwise." in parameter else "conv2d"


def is_kernel(parameter: str) -> bool:
    """Whether a parameter of the network is a convolution's weight."""
    return parameter.endswith("conv.weight")


def torch_shape(layout: Layout, parameter: str, shape: Sequence[int]) -> tuple[int, ...] | None:
    """Return the shape that a variable takes as `parameter`; None if its rank is no kernel's."""
    if not is_kernel(parameter):
        return tuple(shape)
    axes = _AXES[kernel_layout(layout, parameter, len(shape))]
    if len(axes) != len(shape):
        return None
    permuted = [shape[axis] for axis in axes]
    if len(axes) == 2:
        permuted += [1, 1, 1]
    elif len(axes) == 4:
        # Insert the axis that a 2-D kernel lacks: height of one or frames of one.
        permuted[2:] = (
            [permuted[2], permuted[3], 1] if "temporal" in parameter else [1, *permuted[2:]]
        )
    return tuple(permuted)


def to_torch_layout(
    layout: Layout, parameter: str, value: NDArray[np.generic]
) -> NDArray[np.generic]:
    """Return `value` in PyTorch's layout.

    Args:
        layout: the source's.
        parameter: canonical name of the parameter it fills.
        value: the variable.
    """
    shape = torch_shape(layout, parameter, value.shape)
    if not is_kernel(parameter) or shape is None:
        return value
    axes = _AXES[kernel_layout(layout, parameter, value.ndim)]
    return np.ascontiguousarray(value.transpose(axes).reshape(shape))


def from_torch_layout(parameter: str, value: NDArray[np.generic], rank: int) -> NDArray[np.generic]:
    """Return a weight in TensorFlow's layout: the inverse of `to_torch_layout`.

    Args:
        parameter: canonical name of the parameter.
        value: the parameter; a kernel has five axes.
        rank: of the kernel in TensorFlow: 5, or 4 for a 2-D convolution.
    """
    if not is_kernel(parameter):
        return value
    if rank == 4:
        # Drop the axis that a 2-D kernel lacks: the width of one, or the frames of one.
        value = value[..., 0] if "temporal" in parameter else value[:, :, 0]
    axes = _AXES[kernel_layout("tensorflow", parameter, rank)]
    return np.ascontiguousarray(value.transpose(np.argsort(axes)))
