"""The description of one MoViNet: everything about it except its weights.

A `ModelSpec` is frozen, hashable, and survives a round trip through plain data
(`ModelSpec.to_dict` and `ModelSpec.from_dict`), so it travels inside a checkpoint file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from movinet_port.errors import SpecError, nearest

Triple = tuple[int, int, int]

ConvType = Literal["3d", "2plus1d", "3d_2plus1d"]
SEType = Literal["3d", "2d", "2plus3d", "none"]
Activation = Literal["swish", "hard_swish", "relu", "relu6"]
Gate = Literal["sigmoid", "hard_sigmoid_keras", "hard_sigmoid_relu6"]
CausalPadding = Literal["same", "legacy"]

# Hidden width of every squeeze-excitation, relative to what it pools.
SE_RATIO = 0.25


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round `value` to a multiple of `divisor`, at least `divisor` and not below 90 % of `value`.

    The rule by which the reference sizes the squeeze-excitation's hidden layer.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


# Far above any network, far below what overflows.
_LARGEST = 2**20


def _whole(where: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= _LARGEST:
        raise SpecError(f"{where} is {value!r}, expected a whole number from 1 to {_LARGEST}")
    return value


def _sequence(where: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        raise SpecError(f"{where} is {value!r}, expected a sequence")
    return tuple(value)


def _triple(where: str, value: object) -> Triple:
    items = _sequence(where, value)
    if len(items) != 3:
        raise SpecError(f"{where} is {value!r}, expected three numbers: (frames, height, width)")
    frames, height, width = (_whole(where, item) for item in items)
    return frames, height, width


def _strides(where: str, value: object) -> Triple:
    strides = _triple(where, value)
    if strides not in ((1, 1, 1), (1, 2, 2)):
        raise SpecError(
            f"{where} is {strides}; a MoViNet has (1, 1, 1) or (1, 2, 2), and no temporal stride "
            f"anywhere"
        )
    return strides


def _set(spec: object, **fields: object) -> None:
    """Put checked values into a frozen dataclass that is being made."""
    for name, value in fields.items():
        object.__setattr__(spec, name, value)


@dataclasses.dataclass(frozen=True)
class StemSpec:
    """The first convolution; kernel and strides are (frames, height, width)."""

    filters: int
    kernel_size: Triple = (1, 3, 3)
    strides: Triple = (1, 2, 2)

    def __post_init__(self) -> None:
        _whole("stem: filters", self.filters)
        _set(
            self,
            kernel_size=_triple("stem: kernel_size", self.kernel_size),
            strides=_strides("stem: strides", self.strides),
        )


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """A run of layers with one output width; one entry per layer in each tuple."""

    base_filters: int
    expand_filters: tuple[int, ...]
    kernel_sizes: tuple[Triple, ...]
    strides: tuple[Triple, ...]

    def __post_init__(self) -> None:
        _whole("block: base_filters", self.base_filters)
        checks = {"expand_filters": _whole, "kernel_sizes": _triple, "strides": _strides}
        for name, check in checks.items():
            where = f"block: {name}"
            items = _sequence(where, getattr(self, name))
            _set(self, **{name: tuple(check(where, item) for item in items)})
        lengths = {name: len(getattr(self, name)) for name in checks}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise SpecError(
                f"block: {lengths['expand_filters']} expand_filters, {lengths['kernel_sizes']} "
                f"kernel_sizes and {lengths['strides']} strides; expected one of each per layer, "
                f"and at least one layer"
            )


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """The projection before the global pool, and the hidden width of the classifier."""

    project_filters: int
    head_filters: int

    def __post_init__(self) -> None:
        _whole("head: project_filters", self.project_filters)
        _whole("head: head_filters", self.head_filters)


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """One bottleneck layer, with what `ModelSpec` settles for all of them left out."""

    name: str
    in_filters: int
    expand_filters: int
    out_filters: int
    kernel_size: Triple
    strides: Triple

    @property
    def downsamples(self) -> bool:
        """Whether the layer halves the spatial resolution."""
        return self.strides != (1, 1, 1)

    @property
    def has_skip_projection(self) -> bool:
        """Whether the residual branch is projected: channels change or the stride is not 1."""
        return self.downsamples or self.in_filters != self.out_filters


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A complete MoViNet architecture.

    Attributes:
        name: the family member ("a0" to "a5", "t0"), or "custom" for other widths and depths.
        stem, blocks, head: widths, kernels and strides.
        num_classes: number of logits.
        causal: whether temporal convolutions and squeeze-excitation see only the past; a causal
            network is a stream network and carries state from clip to clip.
        conv_type: "3d" for one 3-D convolution, "2plus1d" and "3d_2plus1d" for a spatial and a
            temporal one. The last two are the same function of the same weights; the reference
            runs one with 2-D and the other with 3-D kernels.
        se_type: what the squeeze-excitation pools: "3d" space and time, "2d" space only,
            "2plus3d" both, concatenated, "none" for a network without squeeze-excitation.
        activation: the backbone's activation.
        gate: the squeeze-excitation's gate. "hard_sigmoid_keras" is clip(0.2 x + 0.5, 0, 1),
            which the published stream models were exported with; "hard_sigmoid_relu6" is
            relu6(x + 3) * 0.16667, which tf-models-official 2.8 and later builds.
        classifier_activation: the activation between the two classifier layers.
        positional_encoding: whether a sinusoid of the frame number is added to what the
            squeeze-excitation pools. Only causal networks may have it.
        causal_padding: spatial padding: "same" as TensorFlow pads, or "legacy", kernel - 1 cells
            whatever the stride, as the first published stream models' causal 3-D convolutions, and
            as every convolution of the first PyTorch port with tf_like=False.
        pool_counts_padding: whether the pools in front of skip projections pad one cell on every
            side and count it, as that port's do; otherwise they pad as TensorFlow, and count
            the frame's cells alone.
        norm_epsilon: added to the variance by every batch normalisation.
    """

    name: str
    stem: StemSpec
    blocks: tuple[BlockSpec, ...]
    head: HeadSpec
    num_classes: int = 600
    causal: bool = False
    conv_type: ConvType = "3d"
    se_type: SEType = "3d"
    activation: Activation = "swish"
    gate: Gate = "sigmoid"
    classifier_activation: Activation = "swish"
    positional_encoding: bool = False
    causal_padding: CausalPadding = "same"
    norm_epsilon: float = 1e-3
    pool_counts_padding: bool = False

    def __post_init__(self) -> None:
        try:
            self._check_fields()
            self._check_together()
        except SpecError as error:
            raise SpecError(f"spec {self.name!r}: {error}") from None

    def _check_fields(self) -> None:
        if not isinstance(self.name, str):
            raise SpecError(f"name is {self.name!r}, expected text")
        for field, kind in (("stem", StemSpec), ("head", HeadSpec)):
            if not isinstance(getattr(self, field), kind):
                raise SpecError(f"{field} is {getattr(self, field)!r}, expected a {kind.__name__}")
        _set(self, blocks=_sequence("blocks", self.blocks))
        for index, block in enumerate(self.blocks):
            if not isinstance(block, BlockSpec):
                raise SpecError(f"blocks: number {index} is {block!r}, expected a BlockSpec")
        if not self.blocks:
            raise SpecError("blocks is empty; a MoViNet has at least one block")
        _whole("num_classes", self.num_classes)
        for field in ("causal", "positional_encoding", "pool_counts_padding"):
            if not isinstance(getattr(self, field), bool):
                raise SpecError(f"{field} is {getattr(self, field)!r}, expected True or False")
        for field, choices in _CHOICES.items():
            value: object = getattr(self, field)
            if not isinstance(value, str) or value not in choices:
                raise SpecError(
                    f"{field} is {value!r}, expected one of "
                    f"{', '.join(choices)}{nearest(str(value), choices)}"
                )
        epsilon: object = self.norm_epsilon
        if type(epsilon) is not float or not 0 < epsilon < 1:
            raise SpecError(f"norm_epsilon is {epsilon!r}, expected a number between 0 and 1")

    def _check_together(self) -> None:
        if self.positional_encoding and not self.causal:
            raise SpecError("positional_encoding needs a causal (stream) network")
        if self.positional_encoding and self.se_type == "none":
            raise SpecError(
                "positional_encoding is added inside the squeeze-excitation, and se_type is 'none'"
            )

    @property
    def mode(self) -> Literal["base", "stream"]:
        """ "stream" for a causal network, else "base"."""
        return "stream" if self.causal else "base"

    @property
    def splits_time(self) -> bool:
        """Whether spatial and temporal convolutions are apart ((2+1)D)."""
        return self.conv_type != "3d"

    def layers(self) -> Iterator[LayerSpec]:
        """Yield the bottleneck layers in order, named ``block{i}_layer{j}``."""
        in_filters = self.stem.filters
        for i, block in enumerate(self.blocks):
            windows = zip(block.expand_filters, block.kernel_sizes, block.strides, strict=True)
            for j, (expand_filters, kernel_size, strides) in enumerate(windows):
                yield LayerSpec(
                    name=layer_name(i, j),
                    in_filters=in_filters,
                    expand_filters=expand_filters,
                    out_filters=block.base_filters,
                    kernel_size=kernel_size,
                    strides=strides,
                )
                in_filters = block.base_filters

    def se_pooled_filters(self, expand_filters: int) -> int:
        """Width of what the squeeze-excitation pools from `expand_filters` channels."""
        return 2 * expand_filters if self.se_type == "2plus3d" else expand_filters

    def se_hidden_filters(self, expand_filters: int) -> int:
        """Hidden width of the squeeze-excitation on `expand_filters` channels."""
        return make_divisible(SE_RATIO * self.se_pooled_filters(expand_filters))

    def replace(self, **changes: Any) -> ModelSpec:
        """Return a copy with the named fields changed.

        Raises:
            SpecError: a name is no field of a spec, or the result is no MoViNet.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise SpecError(
                    f"{name!r} is no field of a model spec{nearest(name, known)}; "
                    f"the fields are {', '.join(known)}"
                )
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain data (str, int, float, bool, list, dict), fit for JSON."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Rebuild a spec from what `to_dict` gave.

        Raises:
            SpecError: a field is unknown, missing, or has the wrong type.
        """
        fields = _fields("spec", cls, data)
        fields["stem"] = StemSpec(**_fields("stem", StemSpec, fields["stem"]))
        fields["head"] = HeadSpec(**_fields("head", HeadSpec, fields["head"]))
        fields["blocks"] = tuple(
            BlockSpec(**_fields("block", BlockSpec, block))
            for block in _sequence("blocks", fields["blocks"])
        )
        return cls(**fields)


def _fields(where: str, kind: type[Any], data: object) -> dict[str, Any]:
    """Check the names in `data` against the fields of a dataclass."""
    if not isinstance(data, Mapping):
        raise SpecError(f"{where} is {data!r}, expected a table of fields")
    known = {field.name: field for field in dataclasses.fields(kind)}
    for name in data:
        if name not in known:
            raise SpecError(f"{where}: no field is called {name!r}{nearest(str(name), known)}")
    for name, field in known.items():
        if name not in data and field.default is dataclasses.MISSING:
            raise SpecError(f"{where}: {name} is missing")
    return dict(data)


_CHOICES: dict[str, tuple[str, ...]] = {
    "conv_type": get_args(ConvType),
    "se_type": get_args(SEType),
    "activation": get_args(Activation),
    "gate": get_args(Gate),
    "classifier_activation": get_args(Activation),
    "causal_padding": get_args(CausalPadding),
}


def layer_name(block: int, layer: int) -> str:
    """Return the canonical name of a bottleneck layer, such as ``block1_layer0``."""
    return f"block{block}_layer{layer}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
