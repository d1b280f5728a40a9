"""Where each of TensorFlow's variables goes, as tables.

Variables are found by their object path: the attribute names from the model down to the variable
(``.../_feature/_conv_temporal/_conv/depthwise_kernel``). Full variable names change with the era
and with the convolution type, object paths do not. What a path cannot say is which block and
layer of the network a ``layer_with_weights-N`` is; that is read from the full names of the
variables in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from movinet_port.spec import layer_name

# Object path inside a stem, bottleneck layer, head or classifier -> module of the network.
MODULES: dict[str, str] = {
    "_stem": "stem",
    "_expansion": "expansion",
    "_feature": "depthwise",
    "_attention/_se_reduce": "squeeze_excitation.reduce",
    "_attention/_se_expand": "squeeze_excitation.expand",
    "_attention/_pos_encoding/_rezero": "squeeze_excitation.positional_encoding",
    "_projection": "projection",
    "_mobile_bottleneck/_rezero": "rezero",
    "_skip/_projection": "skip",
    "_project": "head",
    "_head": "classifier.hidden",
    "_classifier": "classifier.output",
}

# Modules that belong to the network as a whole; the others belong to a bottleneck layer.
UNIQUE_MODULES = frozenset({"stem", "head", "classifier.hidden", "classifier.output"})

# Object path inside one of the above -> parameter or buffer of the module. A convolution that
# the reference runs on reshaped frames is wrapped once more: "_conv/_conv".
LEAVES: dict[str, str] = {
    "_conv/kernel": "conv.weight",
    "_conv/bias": "conv.bias",
    "_conv/depthwise_kernel": "conv.weight",
    "_conv_temporal/kernel": "temporal_conv.weight",
    "_conv_temporal/depthwise_kernel": "temporal_conv.weight",
    "_batch_norm/gamma": "norm.weight",
    "_batch_norm/beta": "norm.bias",
    "_batch_norm/moving_mean": "norm.running_mean",
    "_batch_norm/moving_variance": "norm.running_var",
    "_batch_norm_temporal/gamma": "temporal_norm.weight",
    "_batch_norm_temporal/beta": "temporal_norm.bias",
    "_batch_norm_temporal/moving_mean": "temporal_norm.running_mean",
    "_batch_norm_temporal/moving_variance": "temporal_norm.running_var",
    "scale": "scale",
}

# Object paths of what a checkpoint may hold beside the network.
NOT_NETWORK = re.compile(
    r"(^|/)(save_counter|global_step|keras_api/metrics/|metrics/|optimizer(/|$)|_optimizer(/|$)|"
    r"keras_api/optimizer)|(^|/)(train_loss|train_metrics|validation_loss|validation_metrics)/"
)

# Spellings of a bottleneck layer in full variable names: era 1 and the hub's version 3; era 3.
LAYER_IN_FULL_NAME = re.compile(r"(?:^|/)(?:b(\d+)/l(\d+)|block(\d+)_layer(\d+))/")

# PyTorch's buffer that TensorFlow has nothing like; unused with a fixed momentum.
NUM_BATCHES_TRACKED = "num_batches_tracked"

_PATH = re.compile(
    r"^(?P<owner>.*?)(?:^|/)(?P<module>{})/(?P<leaf>{})$".format(
        "|".join(sorted(map(re.escape, MODULES), key=len, reverse=True)),
        "|".join(map(re.escape, LEAVES)),
    )
)


def locate(object_path: str) -> tuple[str, str, str] | None:
    """Return (owner, module, leaf) of a variable, or None if it is not one of a MoViNet.

    The owner is the object path of the stem, bottleneck layer, head or classifier that holds the
    variable; module and leaf are names in the network.
    """
    path = re.sub(r"(_conv|_conv_temporal)/_conv/", r"\1/", object_path)
    match = _PATH.match(path)
    if match is None:
        return None
    return match["owner"], MODULES[match["module"]], LEAVES[match["leaf"]]


def layer_of_full_name(full_name: str) -> str | None:
    """Return the canonical layer that a full variable name speaks of, or None."""
    match = LAYER_IN_FULL_NAME.search(full_name)
    if match is None:
        return None
    block, layer = (group for group in match.groups() if group is not None)
    return layer_name(int(block), int(layer))


# Axes of a TensorFlow kernel -> axes of a PyTorch weight, which is always
# (out, in / groups, frames, height, width). One entry per kernel layout:
#   Conv3D, depthwise as groups too   (frames, height, width, in / groups, out)
#   Conv2D                            (height, width, in, out)
#   DepthwiseConv2D                   (height, width, channels, 1)
# A temporal convolution over reshaped frames has its frames where Conv2D has the height.
_AXES: dict[str, tuple[int, ...]] = {
    "conv3d": (4, 3, 0, 1, 2),
    "conv2d": (3, 2, 0, 1),
    "depthwise_conv2d": (2, 3, 0, 1),
}


def kernel_layout(object_path: str, rank: int) -> str:
    """Return which layout a kernel has, by the variable's name and rank."""
    if object_path.endswith("/depthwise_kernel"):
        return "depthwise_conv2d"
    return "conv3d" if rank == 5 else "conv2d"


def is_kernel(parameter: str) -> bool:
    """Whether a parameter of the network is a convolution's weight."""
    return parameter.endswith("conv.weight")


def torch_shape(object_path: str, parameter: str, shape: Sequence[int]) -> tuple[int, ...] | None:
    """Return the shape that a variable takes as `parameter`; None if its rank is no kernel's."""
    if not is_kernel(parameter):
        return tuple(shape)
    axes = _AXES[kernel_layout(object_path, len(shape))]
    if len(axes) != len(shape):
        return None
    permuted = [shape[axis] for axis in axes]
    if len(axes) == 4:
        # Insert the axis that a 2-D kernel lacks: height of one or frames of one.
        permuted[2:] = (
            [permuted[2], permuted[3], 1] if "temporal" in parameter else [1, *permuted[2:]]
        )
    return tuple(permuted)


def to_torch_layout(
    object_path: str, parameter: str, value: NDArray[np.generic]
) -> NDArray[np.generic]:
    """Return `value` in PyTorch's layout.

    Args:
        object_path: the variable's.
        parameter: canonical name of the parameter it fills.
        value: the variable.
    """
    shape = torch_shape(object_path, parameter, value.shape)
    if not is_kernel(parameter) or shape is None:
        return value
    axes = _AXES[kernel_layout(object_path, value.ndim)]
    return np.ascontiguousarray(value.transpose(axes).reshape(shape))


# TensorFlow's state names, both eras, around the canonical ones.
_STATE = re.compile(
    r"^state[/_](?:(?P<unique>stem|head)|b(?P<b1>\d+)/l(?P<l1>\d+)|block(?P<b2>\d+)_layer(?P<l2>\d+))"
    r"[/_](?P<kind>stream_buffer|pool_buffer|pool_frame_count|pos_enc_frame_count)$"
)


def state_name(tensorflow_name: str) -> str | None:
    """Return the canonical name of a stream state, or None if it is none.

    Every frame count of TensorFlow is one and the same number; here it is one state.
    """
    match = _STATE.match(tensorflow_name)
    if match is None:
        return None
    if match["kind"].endswith("frame_count"):
        return "frame_count"
    block, layer = match["b1"] or match["b2"], match["l1"] or match["l2"]
    owner = match["unique"] or layer_name(int(block), int(layer))
    return f"{owner}.{match['kind']}"
