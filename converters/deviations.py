"""What sets a published network apart from the paper's, as a table that reports walk over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from movinet_port.functions import GATES
from movinet_port.spec import LayerSpec, ModelSpec

# Of a batch normalisation that a converter folded away, which now does nothing: exact in float32,
# as is a variance of one less this, so that both add up to 1.
FOLDED_EPSILON = 2.0**-10


@dataclasses.dataclass(frozen=True)
class Deviation:
    """One way in which a network is not the paper's.

    Attributes:
        field: the field of `ModelSpec` that it follows from; its finding is the evidence.
        text: what is different, in a few words.
    """

    field: str
    text: str


# (field, whether it applies, text)
_TABLE: tuple[tuple[str, Callable[[ModelSpec], bool], Callable[[ModelSpec], str]], ...] = (
    (
        "conv_type",
        lambda spec: spec.splits_time,
        lambda spec: "(2+1)D: spatial and temporal convolutions apart, each normalised",
    ),
    (
        "causal_padding",
        lambda spec: spec.causal_padding == "legacy",
        lambda spec: (
            f"legacy {'causal ' * spec.causal}padding: kernel - 1 cells in all, whatever the stride"
        ),
    ),
    (
        "pool_counts_padding",
        lambda spec: spec.pool_counts_padding,
        lambda spec: "average pools pad every side by one cell and count it",
    ),
    (
        "se_type",
        lambda spec: spec.se_type != "3d",
        lambda spec: {
            "2d": "squeeze-excitation pools each frame by itself",
            "2plus3d": "squeeze-excitation pools each frame and the video so far, concatenated",
            "none": "no squeeze-excitation",
        }[spec.se_type],
    ),
    (
        "gate",
        lambda spec: spec.gate != "sigmoid" and spec.se_type != "none",
        lambda spec: f"squeeze-excitation gate is {GATES[spec.gate].formula}",
    ),
    (
        "activation",
        lambda spec: spec.activation != "swish",
        lambda spec: f"activation is {spec.activation}",
    ),
    (
        "classifier_activation",
        lambda spec: spec.classifier_activation != spec.activation,
        lambda spec: f"the classifier keeps {spec.classifier_activation}",
    ),
    (
        "positional_encoding",
        lambda spec: spec.positional_encoding,
        lambda spec: "positional encoding of the frame number in the squeeze-excitation",
    ),
    (
        "blocks",
        lambda spec: bool(_layers(spec, _skip_for_stride_alone)),
        lambda spec: (
            "skip projection though channels stay the same: "
            + ", ".join(_layers(spec, _skip_for_stride_alone))
        ),
    ),
    (
        "blocks",
        lambda spec: bool(_layers(spec, _skip_for_channels_alone)),
        lambda spec: (
            "skip projection without stride or pool: "
            + ", ".join(_layers(spec, _skip_for_channels_alone))
        ),
    ),
    (
        "norm_epsilon",
        lambda spec: spec.norm_epsilon not in (1e-3, FOLDED_EPSILON),
        lambda spec: f"batch normalisation's epsilon is {spec.norm_epsilon:g}",
    ),
)


def deviations(spec: ModelSpec) -> list[Deviation]:
    """Return how a network of this spec departs from the paper's."""
    return [Deviation(field, text(spec)) for field, applies, text in _TABLE if applies(spec)]


def _layers(spec: ModelSpec, condition: Callable[[LayerSpec], bool]) -> list[str]:
    return [layer.name for layer in spec.layers() if condition(layer)]


def _skip_for_stride_alone(layer: LayerSpec) -> bool:
    return layer.has_skip_projection and layer.in_filters == layer.out_filters


def _skip_for_channels_alone(layer: LayerSpec) -> bool:
    return layer.has_skip_projection and not layer.downsamples


def era(spec: ModelSpec, short_names: bool, later_names: bool = False) -> int:
    """Return which era of the authors' code the network is from.

    Args:
        spec: the network.
        short_names: whether variables are named ``b0/l0/...``, as on the hub, and not
            ``block0_layer0/...``.
        later_names: whether batch normalisations are named as in tf-models-official 2.8 and later.

    Returns:
        1 for the hub's base version 1 and 2 and stream version 2, 2 for the hub's version 3, 3
        for what tf-models-official 2.8 and later builds. Base networks of eras 1 and 2 are the
        same, and so count as 1.
    """
    if not spec.causal or spec.conv_type == "3d":
        return 1 if short_names else 3
    if spec.gate == "hard_sigmoid_keras":
        return 2
    return 3 if spec.gate == "hard_sigmoid_relu6" or later_names else 2
