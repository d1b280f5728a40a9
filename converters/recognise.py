"""From variables, and a graph where there is one, to the spec of the network they belong to.

Widths, depths, kernels, the kinds of convolution and squeeze-excitation, and the classes are read
off names and shapes. What weights cannot tell is read off the graph; without one it is what the
published models of that kind have, or what the caller says, and is marked as assumed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from converters.containers.evidence import ConvolutionEvidence, Evidence
from converters.dialects import FIRST_PORT
from converters.errors import ConversionError
from converters.layouts import is_kernel
from converters.locate import Located
from movinet_port.errors import SpecError
from movinet_port.spec import BlockSpec, HeadSpec, ModelSpec, StemSpec, Triple, layer_name
from movinet_port.variants import DOWNSAMPLING_BLOCKS, PUBLISHED, family_name
from weights import Published


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing known about the network, and how.

    Attributes:
        field: field of `ModelSpec`.
        value: its value.
        how: "read" off the source, "given" by the caller, or "assumed".
        where: variable, graph node, or reason.
    """

    field: str
    value: Any
    how: Literal["read", "given", "assumed"]
    where: str


@dataclasses.dataclass(frozen=True)
class Recognition:
    """What a source was recognised as."""

    spec: ModelSpec
    findings: tuple[Finding, ...]

    def assumed(self) -> list[Finding]:
        """Return what could not be read off the source."""
        return [finding for finding in self.findings if finding.how == "assumed"]


def recognise(
    located: Located,
    evidence: Evidence | None,
    given: Mapping[str, Any],
    *,
    stated: Mapping[str, tuple[Any, str]] | None = None,
    published: Published | None = None,
) -> Recognition:
    """Infer the spec.

    Args:
        located: the source's variables.
        evidence: the source's graph, if it has one.
        given: fields of `ModelSpec` that the caller states; the source must not contradict them.
            "2plus1d" and "3d_2plus1d" are the same function and may be given for each other.
        stated: fields that the source states elsewhere -> (value, where).
        published: what the catalogue says of the address that the source came from.

    Raises:
        ConversionError: the evidence is no MoViNet's, is inconsistent, or contradicts `given`.
    """
    try:
        return _Recogniser(located, evidence, given, stated or {}, published).run()
    # What following a damaged graph ends in; a node without its inputs, say.
    except (LookupError, TypeError, ValueError) as error:
        if evidence is None or isinstance(error, SpecError):
            raise
        raise ConversionError(
            f"its graph does not hang together ({type(error).__name__}: {error}); the file is "
            f"damaged, get it again"
        ) from error


class _Recogniser:
    def __init__(
        self,
        located: Located,
        evidence: Evidence | None,
        given: Mapping[str, Any],
        stated: Mapping[str, tuple[Any, str]],
        published: Published | None,
    ) -> None:
        self.located = located
        self.evidence = evidence
        self.given = given
        self.stated = stated
        self.published = published
        self.findings: dict[str, Finding] = {}
        self.layers = self._layer_names()

    def run(self) -> Recognition:
        convolutions = self._convolutions()
        self._find_conv_type()
        self._find_se_type()
        self._find_positional_encoding()
        self._find_causal(convolutions)
        self._find_activations()
        self._find_padding(convolutions)
        self._find_epsilon()
        fields = {field: finding.value for field, finding in self.findings.items()}
        try:
            spec = ModelSpec(
                name="custom",
                stem=self._stem(convolutions),
                blocks=self._blocks(convolutions),
                head=HeadSpec(
                    project_filters=self.located.shape("head.conv.weight")[0],
                    head_filters=self.located.shape("classifier.hidden.conv.weight")[0],
                ),
                num_classes=self.located.shape("classifier.output.conv.weight")[0],
                **fields,
            )
        except SpecError as error:
            raise ConversionError(f"the variables make no MoViNet: {error}") from error
        if self.evidence is None:
            self._suppose_strides(spec)
        unused = {
            field: value
            for field, value in self.given.items()
            if getattr(spec, field) != value and field not in self.findings
        }
        if unused:
            field, value = next(iter(unused.items()))
            raise ConversionError(
                f"{field} was given as {value!r}, but the source has {getattr(spec, field)!r}"
            )
        return Recognition(spec.replace(name=family_name(spec)), tuple(self.findings.values()))

    def _settle(
        self,
        field: str,
        read: tuple[Any, str] | None,
        assumed: Any,
        reason: str = "as the published models of this kind",
    ) -> Any:
        """Decide a field: what was read, or else what was given, or else what is assumed."""
        given = self.given.get(field)
        read = read or self.stated.get(field)
        if read is not None:
            value, where = read
            if given is not None and given != value:
                raise ConversionError(
                    f"{field} was given as {given!r}, but the source has {value!r} "
                    f"(read off {where}); leave it out to convert what is there"
                )
            finding = Finding(field, value, "read", where)
        elif given is not None:
            finding = Finding(field, given, "given", "by the caller")
        else:
            finding = Finding(field, assumed, "assumed", reason)
        self.findings[field] = finding
        return finding.value

    def _layer_names(self) -> list[list[str]]:
        """Return the layers' names, block by block.

        Raises:
            ConversionError: a block or layer is missing.
        """
        numbers = sorted(
            {
                (int(match[1]), int(match[2]))
                for match in map(_LAYER.match, self.located.parameters)
                if match
            }
        )
        blocks: list[list[str]] = []
        for block, layer in numbers:
            if layer == 0:
                blocks.append([])
            if not blocks or (block, layer) != (len(blocks) - 1, len(blocks[-1])):
                expected = layer_name(len(blocks), 0)
                if layer == 0 or block < len(blocks):
                    expected = layer_name(len(blocks) - 1, len(blocks[-1]))
                raise ConversionError(
                    f"the variables go up to {layer_name(block, layer)}, but those of "
                    f"{expected} are missing: the source is incomplete"
                )
            blocks[-1].append(layer_name(block, layer))
        if not blocks:
            raise ConversionError("no MoViNet: it has no bottleneck layers")
        return blocks

    def _streaming(self) -> list[str]:
        """Return the modules whose convolution may span frames."""
        return ["stem", *(f"{name}.depthwise" for block in self.layers for name in block)]

    def _kernel(self, module: str) -> Triple:
        _, _, frames, height, width = self.located.shape(f"{module}.conv.weight")
        temporal = f"{module}.temporal_conv.weight"
        if temporal in self.located.parameters:
            frames = self.located.shape(temporal)[2]
        return frames, height, width

    def _convolutions(self) -> dict[str, ConvolutionEvidence]:
        """Return what the graph says about every convolution that may span frames or stride."""
        if self.evidence is None:
            return {}
        return {
            parameter: self.evidence.convolution(parameter, self._own_kernel(parameter))
            for module in self._streaming()
            for parameter in (f"{module}.conv.weight", f"{module}.temporal_conv.weight")
            if parameter in self.located.parameters
        }

    def _own_kernel(self, parameter: str) -> Triple:
        _, _, frames, height, width = self.located.shape(parameter)
        return frames, height, width

    def _find_conv_type(self) -> None:
        self.located.shape("stem.conv.weight")
        kernels = {
            parameter: variable
            for parameter, variable in self.located.parameters.items()
            # A new last layer may be of either sort: on the pooled cell they are the same.
            if is_kernel(parameter) and not parameter.startswith("classifier.")
        }
        flat = [p for p, v in kernels.items() if len(v.shape) == 4]
        split = [p for p in kernels if p.endswith("temporal_conv.weight")]
        if flat and len(flat) != len(kernels):
            odd = next(p for p in kernels if p not in flat)
            raise ConversionError(
                f"{kernels[flat[0]]} is a 2-D kernel and {kernels[odd]} a 3-D one; "
                f"a MoViNet has only one sort"
            )
        value = "2plus1d" if flat else "3d_2plus1d" if split else "3d"
        witness = str(kernels[(split or flat or list(kernels))[0]])
        given = self.given.get("conv_type")
        if given != value and {given, value} <= _SPLIT:
            where = f"the same function as {value}, which was read off {witness}"
            self.findings["conv_type"] = Finding("conv_type", given, "given", where)
        else:
            self._settle("conv_type", (value, witness), None)

    def _find_se_type(self) -> None:
        names_ = [name for block in self.layers for name in block]
        reduce = "squeeze_excitation.reduce.conv.weight"
        having = [n for n in names_ if f"{n}.{reduce}" in self.located.parameters]
        if not having:
            self._settle("se_type", ("none", "no layer has one"), None)
            return
        first = f"{having[0]}.{reduce}"
        pooled = self.located.shape(first)[1]
        width = self.located.shape(f"{having[0]}.depthwise.conv.weight")[0]
        variable = str(self.located.parameters[first])
        if pooled == 2 * width:
            self._settle("se_type", ("2plus3d", variable), None)
        elif self.evidence is not None:
            statement = self.evidence.pooled_over_time(first)
            kind = "3d" if statement.value == "time" else "2d"
            self._settle("se_type", (kind, statement.node), None)
        else:
            self._settle("se_type", None, "3d")

    def _find_positional_encoding(self) -> None:
        having = [p for p in self.located.parameters if p.endswith("positional_encoding.scale")]
        witness = str(self.located.parameters[having[0]]) if having else "no variable of one"
        self._settle("positional_encoding", (bool(having), witness), None)

    def _find_causal(self, convolutions: Mapping[str, ConvolutionEvidence]) -> None:
        spanning = {
            parameter: evidence
            for parameter, evidence in convolutions.items()
            if self._own_kernel(parameter)[0] > 1
        }
        kinds = {evidence.causal for evidence in spanning.values()}
        if len(kinds) > 1:
            one, other = (next(p for p, e in spanning.items() if e.causal is k) for k in kinds)
            raise ConversionError(f"{one} and {other} differ: one is causal, the other is not")
        if kinds:
            evidence = next(iter(spanning.values()))
            self._settle("causal", (evidence.causal, evidence.node), None)
        elif self.findings["positional_encoding"].value:
            self._settle("causal", (True, "it has positional encodings"), None)
        else:
            hint = self._hint()
            if hint is not None:
                self._settle("causal", None, hint.model.mode == "stream", _as_published(hint))
            else:
                self._settle("causal", None, self._looks_stream())

    def _looks_stream(self) -> bool:
        """Whether the variables are those of a published stream model, but for the first ones.

        Where there is a squeeze-excitation, its width tells.
        """
        se_type = self.findings["se_type"].value
        if se_type == "none":
            return bool(self.findings["conv_type"].value != "3d")
        return bool(se_type == PUBLISHED["stream"]["se_type"])

    def _hint(self) -> Published | None:
        """Return what is published where the source came from, if its variables fit that."""
        hint = self.published
        if hint is None:
            return None
        fits = (hint.model.mode == "stream" and not hint.legacy) == self._looks_stream()
        return hint if fits else None

    def _supposed(self) -> tuple[Mapping[str, str], str]:
        """Return what the variables do not say, and why it is supposed."""
        causal = self.findings["causal"].value
        reason = "as the published models of this kind"
        hint = self._hint()
        if hint is not None and (hint.model.mode == "stream") != causal:
            hint = None
        if not causal or self.findings["conv_type"].value == "3d":
            # The first stream models, by the names of their time; later code pads as TensorFlow.
            first = self.located.has_short_names() and self.located.dialect.layout == "tensorflow"
            legacy = causal and (first or (hint is not None and hint.legacy))
            era: Mapping[str, str] = _SUPPOSED["3d legacy" if legacy else "3d"]
        elif self.located.has_later_names():
            era, reason = _SUPPOSED["split era 3"], "named as since tf-models-official 2.8"
        elif self._trained_by_authors_code():
            era, reason = _SUPPOSED["split era 3"], "3d_2plus1d is what tf-models-official trains"
        else:
            era = _SUPPOSED["split era 2"]
        return era, reason if hint is None else _as_published(hint)

    def _trained_by_authors_code(self) -> bool:
        """Whether it is 3d_2plus1d under the names of the releases: none was ever published."""
        conv_type = self.findings["conv_type"]
        read = conv_type.value if conv_type.how == "read" else ""
        return read == "3d_2plus1d" and not self.located.has_short_names()

    def _find_activations(self) -> None:
        supposed, reason = self._supposed()
        backbone = [
            parameter
            for parameter in self.located.parameters
            if parameter.endswith(
                (
                    "expansion.norm.bias",
                    "depthwise.norm.bias",
                    "temporal_norm.bias",
                    "stem.norm.bias",
                    "head.norm.bias",
                    "reduce.conv.bias",
                )
            )
        ]
        gates = [p for p in self.located.parameters if p.endswith("expand.conv.bias")]
        self._agree("activation", backbone, supposed["activation"], reason)
        if gates:
            self._agree("gate", gates, supposed["gate"], reason)
        self._agree("classifier_activation", ["classifier.hidden.conv.bias"], "swish", reason)

    def _agree(self, field: str, parameters: list[str], assumed: str, reason: str) -> None:
        if self.evidence is None:
            self._settle(field, None, assumed, reason)
            return
        read = self.evidence.gate if field == "gate" else self.evidence.activation
        statements = {parameter: read(parameter) for parameter in parameters}
        first = statements[parameters[0]]
        for parameter, statement in statements.items():
            if statement.value != first.value:
                raise ConversionError(
                    f"{field} is {first.value} behind {parameters[0]} and {statement.value} "
                    f"behind {parameter} ({statement.node}); a MoViNet has one for all"
                )
        self._settle(field, (first.value, first.node), None)

    def _find_padding(self, convolutions: Mapping[str, ConvolutionEvidence]) -> None:
        if self.located.dialect is FIRST_PORT:
            reason = "built with tf_like=True; with False, that port's default, the other"
            self._settle("causal_padding", None, "same", reason)
            self._settle("pool_counts_padding", None, False, reason)
            return
        causal = self.findings["causal"].value
        whole = self.findings["conv_type"].value == "3d"
        if not (causal and whole):
            self._settle("causal_padding", ("same", "only causal 3-D networks differ"), None)
            return
        if not convolutions:
            supposed, reason = self._supposed()
            self._settle("causal_padding", None, supposed["causal_padding"], reason)
            return
        fitting = frozenset({"same", "legacy"})
        where = "no strided convolution"
        for evidence in convolutions.values():
            if fitting & evidence.paddings != fitting:
                where = evidence.node
            fitting &= evidence.paddings
        if not fitting:
            raise ConversionError(f"{where}: pads by another rule than the layers before it")
        self._settle("causal_padding", ("same" if "same" in fitting else "legacy", where), None)

    def _find_epsilon(self) -> None:
        variances = [p for p in self.located.parameters if p.endswith("norm.running_var")]
        if self.evidence is None or not variances:
            self._settle("norm_epsilon", None, 1e-3)
            return
        values = {parameter: self.evidence.epsilon(parameter) for parameter in variances}
        if len(set(values.values())) != 1:
            raise ConversionError(
                f"batch normalisations differ in epsilon: {sorted(set(values.values()))}; "
                f"a MoViNet has one for all"
            )
        self._settle("norm_epsilon", (values[variances[0]], variances[0]), None)

    def _suppose_strides(self, spec: ModelSpec) -> None:
        strided = ["stem"] if spec.stem.strides != (1, 1, 1) else []
        strided += [layer.name for layer in spec.layers() if layer.downsamples]
        self.findings["strides"] = Finding(
            "strides", f"(1, 2, 2) in {', '.join(strided)}", "assumed", "the family's rule"
        )
        if self.located.removed:
            reason = f"without {', '.join(self.located.removed)}, which leave no variables"
            value = ", ".join(str(len(block.strides)) for block in spec.blocks)
            self.findings["layers"] = Finding("layers", value, "assumed", reason)

    def _strides(self, module: str, rule: Triple, evidence: Mapping[str, Any]) -> Triple:
        found = evidence.get(f"{module}.conv.weight")
        return rule if found is None else found.strides

    def _stem(self, convolutions: Mapping[str, ConvolutionEvidence]) -> StemSpec:
        return StemSpec(
            filters=self.located.shape("stem.conv.weight")[0],
            kernel_size=self._kernel("stem"),
            strides=self._strides("stem", (1, 2, 2), convolutions),
        )

    def _blocks(self, convolutions: Mapping[str, ConvolutionEvidence]) -> tuple[BlockSpec, ...]:
        blocks = []
        entering = self.located.shape("stem.conv.weight")[0]
        for index, layers in enumerate(self.layers):
            widths = [self.located.shape(f"{name}.projection.conv.weight")[0] for name in layers]
            if len(set(widths)) != 1:
                raise ConversionError(
                    f"block {index}: its layers put out {widths} channels, expected one width"
                )
            strides = []
            for name in layers:
                halves = index in DOWNSAMPLING_BLOCKS and name == layers[0]
                rule = (1, 2, 2) if halves else (1, 1, 1)
                strides.append(self._strides(f"{name}.depthwise", rule, convolutions))
                self._check_skip(name, strides[-1], entering, widths[0])
                entering = widths[0]
            blocks.append(
                BlockSpec(
                    base_filters=widths[0],
                    expand_filters=tuple(
                        self.located.shape(f"{name}.depthwise.conv.weight")[0] for name in layers
                    ),
                    kernel_sizes=tuple(self._kernel(f"{name}.depthwise") for name in layers),
                    strides=tuple(strides),
                )
            )
        return tuple(blocks)

    def _check_skip(self, name: str, strides: Triple, entering: int, leaving: int) -> None:
        """Check that the layer's skip projection, and the pool before it, are what strides need."""
        weight = f"{name}.skip.conv.weight"
        projects = weight in self.located.parameters
        if self.evidence is None:
            if projects != (strides != (1, 1, 1) or entering != leaving):
                raise ConversionError(
                    f"{name}: {'a' if projects else 'no'} skip projection from {entering} to "
                    f"{leaving} channels at strides {strides}, which follow from the family's "
                    f"rule; a variable is missing, or it is no network of the family's shape"
                )
            return
        if not projects:
            return
        pool = self.evidence.average_pool(weight)
        if (pool is not None) != (strides != (1, 1, 1)):
            raise ConversionError(
                f"{name}: strides {strides} but {'a' if pool else 'no'} pool in front of its skip "
                f"projection; a MoViNet pools there exactly when the layer strides"
            )


_LAYER = re.compile(r"block(\d+)_layer(\d+)\.")

# (2+1)D: one function of the same weights.
_SPLIT = {"2plus1d", "3d_2plus1d"}

# What variables do not tell, by conv type and era of the authors' code.
_SUPPOSED: Mapping[str, Mapping[str, str]] = {
    "3d": {"activation": "swish", "gate": "sigmoid", "causal_padding": "same"},
    "3d legacy": {"activation": "swish", "gate": "sigmoid", "causal_padding": "legacy"},
    "split era 2": {"activation": "hard_swish", "gate": "hard_sigmoid_keras"},
    "split era 3": {"activation": "hard_swish", "gate": "hard_sigmoid_relu6"},
}


def _as_published(entry: Published) -> str:
    return f"as published at {entry.url}"
