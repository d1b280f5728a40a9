"""How each kind of file spells the network's variables, as tables.

A `Dialect` says which end of a variable's name means which parameter. A new kind of file, or a new
release of the authors' code, is new entries here. TensorFlow's checkpoints are read by object path:
the attribute names from the model down to the variable
(``.../_feature/_conv_temporal/_conv/depthwise_kernel``), which change neither with the era nor with
the convolution type, as full names do.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from converters.layouts import Layout
from movinet_port.spec import layer_name

# Field of `ModelSpec` -> (value, where it was read).
Stated = Mapping[str, tuple[Any, str]]


class Place(NamedTuple):
    """Where a variable goes.

    Attributes:
        owner: what the name starts with: the stem, bottleneck layer, head or classifier.
        module, leaf: the parameter's canonical name in it.
    """

    owner: str
    module: str
    leaf: str


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How one kind of file spells variables: owner, module and leaf, one after the other.

    Attributes:
        title: what the file is, for messages.
        modules: spelling -> module of the network.
        leaves: spelling of a variable in such a module -> parameter or buffer of it.
        scalars: spelling of a variable that belongs to no such module -> (module, leaf).
        separator: between the parts of a name.
        ignored: parts of a name that say nothing.
        layout: of the kernels.
        inside: what of an owner lies in the network; the rest says which network of the file it is.
        tells: fields of `ModelSpec` that follow from shapes, where only this dialect's code makes
            them: canonical parameter -> (shape in the file, name there) to field -> (value, name).
    """

    title: str
    modules: Mapping[str, str]
    leaves: Mapping[str, str]
    scalars: Mapping[str, tuple[str, str]]
    separator: str = "/"
    ignored: re.Pattern[str] | None = None
    layout: Layout = "tensorflow"
    inside: re.Pattern[str] | None = None
    tells: Callable[[Mapping[str, tuple[Sequence[int], str]]], Stated] = lambda shapes: {}

    def locate(self, name: str) -> Place | None:
        """Return where the variable of this name goes, or None if it is not one of a MoViNet."""
        if self.ignored is not None:
            name = self.ignored.sub("", name)
        parts = name.split(self.separator)
        # Longest end first: "_skip/_projection" is not "_projection".
        for start in range(len(parts)):
            place = self.ends.get(self.separator.join(parts[start:]))
            if place is not None:
                return Place(self.separator.join(parts[:start]), *place)
        return None

    @functools.cached_property
    def ends(self) -> dict[str, tuple[str, str]]:
        """Every end of a variable's name -> (module, leaf)."""
        ends = dict(self.scalars)
        for module_spelling, module in self.modules.items():
            for leaf_spelling, leaf in self.leaves.items():
                ends[f"{module_spelling}{self.separator}{leaf_spelling}"] = (module, leaf)
        return ends


# Modules that belong to the network as a whole; the others belong to a bottleneck layer.
UNIQUE_MODULES = frozenset({"stem", "head", "classifier.hidden", "classifier.output"})

# Buffers of PyTorch's that TensorFlow has nothing like; unused with a fixed momentum.
NUM_BATCHES_TRACKED = "num_batches_tracked"


def _convolution(
    spellings: Mapping[str, Sequence[str]], kernels: Sequence[str], bias: str
) -> dict[str, str]:
    """Return the leaves of convolutions, given as canonical name -> spellings."""
    return {
        f"{spelling}/{variable}": f"{convolution}.{leaf}"
        for convolution, alternatives in spellings.items()
        for spelling in alternatives
        for leaf, variables in (("weight", kernels), ("bias", [bias]))
        for variable in variables
    }


def _normalisation(
    spellings: Mapping[str, Sequence[str]], variables: Sequence[str]
) -> dict[str, str]:
    """Return the leaves of batch normalisations, given as canonical name -> spellings.

    `variables` spell gamma, beta, mean and variance.
    """
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {
        f"{spelling}/{variable}": f"{norm}.{leaf}"
        for norm, alternatives in spellings.items()
        for spelling in alternatives
        for variable, leaf in zip(variables, leaves, strict=True)
    }


# TensorFlow's own names of a batch normalisation's variables.
_STATISTICS = ("gamma", "beta", "moving_mean", "moving_variance")

# TF2 checkpoints and SavedModels of every era. A convolution that the authors run on reshaped
# frames is wrapped once more: "_conv/_conv".
OBJECT_PATH = Dialect(
    title="object path",
    modules={
        "_stem": "stem",
        "_expansion": "expansion",
        "_feature": "depthwise",
        "_attention/_se_reduce": "squeeze_excitation.reduce",
        "_attention/_se_expand": "squeeze_excitation.expand",
        "_projection": "projection",
        "_skip/_projection": "skip",
        "_project": "head",
        "_head": "classifier.hidden",
        "_classifier": "classifier.output",
    },
    leaves={
        **_convolution(
            {
                "conv": ("_conv", "_conv/_conv"),
                "temporal_conv": ("_conv_temporal", "_conv_temporal/_conv"),
            },
            kernels=("kernel", "depthwise_kernel"),
            bias="bias",
        ),
        **_normalisation(
            {"norm": ("_batch_norm",), "temporal_norm": ("_batch_norm_temporal",)}, _STATISTICS
        ),
    },
    scalars={
        "_mobile_bottleneck/_rezero/scale": ("rezero", "scale"),
        "_attention/_pos_encoding/_rezero/scale": (
            "squeeze_excitation.positional_encoding",
            "scale",
        ),
    },
)

# Keras HDF5 of every era: `save_weights("x.h5")`, and `save("x.h5")` under "model_weights". Keras
# numbers the inner 2-D convolutions ("conv2d_3"), differently from session to session, and the
# heads of a session's later models ("classifier_head_1"). The scalar of a positional encoding is
# just "scale", of whichever layer: TensorFlow cannot write two of them.
FULL_NAME = Dialect(
    title="full variable name",
    modules={
        "stem/stem": "stem",
        "bneck/expansion": "expansion",
        "bneck/feature": "depthwise",
        "bneck/se/se_reduce": "squeeze_excitation.reduce",
        "bneck/se/se_expand": "squeeze_excitation.expand",
        "bneck/projection": "projection",
        "bneck/skip/skip_project": "skip",
        "head/project": "head",
        "classifier_head/head": "classifier.hidden",
        "classifier_head/classifier": "classifier.output",
    },
    leaves={
        **_convolution(
            {
                # 3-D; 2-D; depthwise 2-D.
                "conv": ("conv3d", "conv2d/conv2d", "conv2d/depthwise_conv2d"),
                "temporal_conv": (
                    "conv3d_temporal",
                    "conv2d_temporal/conv2d",
                    "conv2d_temporal/depthwise_conv2d",
                ),
            },
            kernels=("kernel", "depthwise_kernel"),
            bias="bias",
        ),
        **_normalisation(
            {
                # All 3-D ones and era 2; 2-D ones of era 3.
                "norm": ("bn", "conv2d/bn"),
                "temporal_norm": ("bn_temporal", "conv2d_temporal/bn_temporal"),
            },
            _STATISTICS,
        ),
    },
    scalars={"scale": ("rezero", "scale")},
    ignored=re.compile(r":0$|(?<=conv2d)_\d+(?=/)|(?<=classifier_head)_\d+(?=/)"),
)

# Keras 3's format as tf-keras 2.13 and later write it: "x.weights.h5", and "x.keras", a zip that
# holds one. Attributes as in an object path, but some under another of their names; variables are
# numbered.
_NUMBERS = ("vars/0", "vars/1", "vars/2", "vars/3")
KERAS_3 = Dialect(
    title="Keras 3 path",
    modules={
        "_stem": "stem",
        "_mobile_bottleneck/_expansion_layer": "expansion",
        "_mobile_bottleneck/_feature_layer": "depthwise",
        "_mobile_bottleneck/_attention_layer/_se_reduce": "squeeze_excitation.reduce",
        "_mobile_bottleneck/_attention_layer/_se_expand": "squeeze_excitation.expand",
        "_projection": "projection",
        "_skip/_projection": "skip",
        "_project": "head",
        "_head": "classifier.hidden",
        "_classifier": "classifier.output",
    },
    leaves={
        **_convolution(
            {
                "conv": ("_conv", "_conv/_conv"),
                "temporal_conv": ("_conv_temporal", "_conv_temporal/_conv"),
            },
            kernels=("vars/0",),
            bias="vars/1",
        ),
        **_normalisation(
            {
                # 3-D; 2-D.
                "norm": ("_batch_norm", "_conv/_batch_norm_op"),
                "temporal_norm": ("_batch_norm_temporal", "_conv_temporal/_batch_norm_op"),
            },
            _NUMBERS,
        ),
    },
    scalars={
        "_mobile_bottleneck/_rezero/vars/0": ("rezero", "scale"),
        "_mobile_bottleneck/_attention_layer/_pos_encoding/_rezero/vars/0": (
            "squeeze_excitation.positional_encoding",
            "scale",
        ),
    },
)


def _told_by_first_port(shapes: Mapping[str, tuple[Sequence[int], str]]) -> Stated:
    """Return what follows from the first port's constructor.

    It doubles what the squeeze-excitation takes where the network is causal, and has the published
    stream models' activation and gate exactly where kernels are 2-D.
    """
    stated: dict[str, tuple[Any, str]] = {}
    for name, (shape, where) in shapes.items():
        layer, inner, _ = name.partition(".squeeze_excitation.reduce.conv.weight")
        depthwise = shapes.get(f"{layer}.depthwise.conv.weight")
        if inner and depthwise is not None and len(shape) > 1:
            doubled = shape[1] == 2 * depthwise[0][0]
            stated["causal"] = (doubled, where)
            if not doubled:
                stated["se_type"] = ("3d", where)
            flat = len(depthwise[0]) == 4
            # It splits time in 2-D only.
            if flat or not any(name.endswith("temporal_conv.weight") for name in shapes):
                stated["activation"] = ("hard_swish" if flat else "swish", depthwise[1])
                stated["gate"] = ("hard_sigmoid_keras" if flat else "sigmoid", depthwise[1])
            break
    return stated


# State dicts of the first PyTorch port, Atze00/MoViNet-pytorch. Base models have 3-D convolutions,
# stream models 2-D ones. What comes before ("module." of a DataParallel) says which network of the
# file it is. Who fine-tunes puts a convolution or a linear layer in the place of the last one,
# alone or in an nn.Sequential.
FIRST_PORT = Dialect(
    title="first PyTorch port's state dict",
    modules={
        "conv1": "stem",
        "expand": "expansion",
        "deep": "depthwise",
        "se.fc1": "squeeze_excitation.reduce",
        "se.fc2": "squeeze_excitation.expand",
        "project": "projection",
        # Without a pool in front of it; with one.
        "res.0": "skip",
        "res.1": "skip",
        "conv7": "head",
        "classifier.0": "classifier.hidden",
        "classifier.3": "classifier.output",
    },
    leaves={
        f"{part}.{spelling}.{leaf}": f"{prefix}{module}.{leaf}"
        for part, prefix in (("conv_1", ""), ("conv_2", "temporal_"))
        for spelling, module, leaves in (
            ("conv3d", "conv", ("weight", "bias")),
            ("conv2d", "conv", ("weight", "bias")),
            (
                "norm",
                "norm",
                ("weight", "bias", "running_mean", "running_var", NUM_BATCHES_TRACKED),
            ),
        )
        for leaf in leaves
    },
    scalars={
        "alpha": ("rezero", "scale"),
        "classifier.0.weight": ("classifier.hidden", "conv.weight"),
        "classifier.0.bias": ("classifier.hidden", "conv.bias"),
        "classifier.3.weight": ("classifier.output", "conv.weight"),
        "classifier.3.bias": ("classifier.output", "conv.bias"),
    },
    separator=".",
    ignored=re.compile(r"(?<=classifier\.[03])\.\d+(?=\.)"),
    layout="torch",
    inside=re.compile(r"(^|\.)blocks\.b\d+_l\d+$"),
    tells=_told_by_first_port,
)

# Names of what a file may hold beside the network: an optimizer's, metrics', and counters.
NOT_NETWORK = re.compile(
    r"(^|/)(save_counter|global_step|keras_api/metrics/|metrics/|_?optimizer(/|$)|"
    r"keras_api/optimizer|\.OPTIMIZER_SLOT/|optimizer_weights/)|"
    r"(^|/)(train_loss|train_metrics|validation_loss|validation_metrics)/|"
    r"(^|\.)(\w*optim\w*|\w*scheduler\w*|\w*scaler|loops|callbacks)\.|"
    r"(^|[./])(decay|learning_rate|momentum|beta_[12]|rho|epsilon)$"
)

# Networks of averaged weights, by what their names start with.
AVERAGED = re.compile(r"(^|[._/])(ema|swa|averaged?|shadow)(?![a-z])", re.IGNORECASE)

# Batch normalisations of 2-D convolutions, as tf-models-official 2.8 and later name them.
LATER_NAMES = re.compile(r"/(conv2d/bn|_conv/_batch_norm_op)/")

# Spellings of a bottleneck layer: era 1 and the hub's version 3; era 3; the first PyTorch port.
LAYER = re.compile(
    r"(?:^|/)(?:b(\d+)/l(\d+)|block(\d+)_layer(\d+))(?:/|$)|(?:^|\.)blocks\.b(\d+)_l(\d+)\."
)


def layer_of(name: str) -> str | None:
    """Return the canonical layer that a variable's name speaks of, or None."""
    match = LAYER.search(name)
    if match is None:
        return None
    block, layer = (group for group in match.groups() if group is not None)
    return layer_name(int(block), int(layer))


def spelling(dialect: Dialect, module: str, leaf: str, *, two_d: bool) -> str:
    """Return how tf-models-official 2.8 and later spell a parameter: `Dialect.locate` backwards.

    Args:
        dialect: `OBJECT_PATH` or `FULL_NAME`.
        module, leaf: of the parameter.
        two_d: whether the network has 2-D convolutions.
    """
    ends = [end for end, place in dialect.ends.items() if place == (module, leaf)]
    # A name without a convolution in it is the same in both.
    fit = [end for end in ends if bool(_TWO_D.search(end)) == two_d] or ends
    fit.sort(key=lambda end: end.count("depthwise"))
    return fit[-1] if two_d and module == "depthwise" else fit[0]


_TWO_D = re.compile(r"conv2d|_conv(_temporal)?/_conv/")


# TensorFlow's state names, both eras, around the canonical ones.
_STATE = re.compile(
    r"^state[/_](?:(?P<unique>stem|head)|b(?P<b1>\d+)/l(?P<l1>\d+)|block(?P<b2>\d+)_layer(?P<l2>\d+))"
    r"[/_](?P<kind>stream_buffer|pool_buffer|pool_frame_count|pos_enc_frame_count)$"
)


def state_owner(tensorflow_name: str) -> str | None:
    """Return the canonical name of the layer that keeps a stream state, or None if it is none."""
    match = _STATE.match(tensorflow_name)
    if match is None:
        return None
    block, layer = match["b1"] or match["b2"], match["l1"] or match["l2"]
    return match["unique"] or layer_name(int(block), int(layer))


def state_name(tensorflow_name: str) -> str | None:
    """Return the canonical name of a stream state, or None if it is none.

    Every frame count of TensorFlow is one and the same number; here it is one state.
    """
    match = _STATE.match(tensorflow_name)
    if match is None:
        return None
    if match["kind"].endswith("frame_count"):
        return "frame_count"
    return f"{state_owner(tensorflow_name)}.{match['kind']}"
