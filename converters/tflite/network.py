"""From the operations of a TF Lite file to the variables of the network that it computes.

The converter folds batch normalisations into the convolutions in front of them, renames the
weights, and leaves out the objects that owned them. What stays is the first segment of the name of
each operation's output, which is the full name of the layer that it computes:
``.../block1_layer0/bneck/feature/conv2d_temporal/...``.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from converters.containers.evidence import ConvolutionEvidence, Statement
from converters.containers.variables import SourceVariables, Variable
from converters.deviations import FOLDED_EPSILON
from converters.dialects import FULL_NAME, UNIQUE_MODULES, Dialect, layer_of
from converters.errors import ConversionError
from converters.graph_evidence import ACTIVATIONS, GATES, LINEAR, Function
from converters.tflite.run import FUSED, LiteRunner
from converters.tflite.schema import LiteModel, Operation, Tensor
from movinet_port.functions import KERAS_LINE, SIXTH
from movinet_port.layers import encoding_rates
from movinet_port.spec import Triple

_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
# What passes a value on, or says the same one in other numbers or another shape.
_PASSING = ("RESHAPE", "QUANTIZE", "DEQUANTIZE", "CAST", "EXPAND_DIMS", "SQUEEZE")
_ELEMENTWISE = (
    *("HARD_SWISH", "LOGISTIC", "RELU", "RELU6", "RELU_0_TO_1"),
    *("MUL", "ADD", "SUB", "DIV", "MINIMUM", "MAXIMUM"),
    *_PASSING,
)
_ENCODING_SCALE = re.compile(r"/bneck/se/positional_encoding(_\d+)?/rezero/mul")
_ENCODING_ANGLE = re.compile(r"/bneck/se/positional_encoding(_\d+)?/mul")
_REZERO = re.compile(r"/bneck/rezero(_\d+)?/mul")
# What an operation's output is, by its kind and the end of its place.
_PLACES = (
    (re.compile(r"/bneck/rezero(_\d+)?/mul\d*$"), ("MUL",), ".rezero"),
    (re.compile(r"/bneck/add(_\d+)?$"), ("ADD",), ""),
    (re.compile(r"/bneck/skip/skip_pool"), ("AVERAGE_POOL_2D",), ".skip.pool"),
    (re.compile(r"/bneck/se/mul(_\d+)?$"), ("MUL",), ".squeeze_excitation"),
    (
        re.compile(r"/bneck/se/spatial_average_pool3d(_\d+)?/Mean$"),
        ("MEAN",),
        ".squeeze_excitation.spatial_pool",
    ),
    (
        re.compile(r"/bneck/se/global_average_pool3d(_\d+)?/truediv$"),
        ("DIV", "MUL"),
        ".squeeze_excitation.temporal_pool",
    ),
    (
        re.compile(r"/bneck/se/positional_encoding(_\d+)?/add(_2)?$"),
        ("ADD",),
        ".squeeze_excitation.positional_encoding",
    ),
)
_TEMPORAL = re.compile(r"conv[23]d_temporal/")

_FOLDED_VARIANCE = 1.0 - FOLDED_EPSILON

# How the factors of a gate get into the convolution in front of it: the file's convolution gives
# factor * x + offset of the network's x.
_FOLDED_GATES: Mapping[str, tuple[float, float]] = {
    "sigmoid": (1.0, 0.0),
    "hard_sigmoid_relu6": (1.0, 3.0),
    "hard_sigmoid_keras": (KERAS_LINE.slope, KERAS_LINE.constant),
}


_GRID = np.linspace(-8.0, 8.0, 321)
_GRID_TOLERANCE = 1e-5
# float16 rounds a gate's factor of 0.16667, whose largest value is 1, by 2 ** -12.
_HALF_TOLERANCE = 5e-4

# Parameters under their canonical names, kernels in PyTorch's layout.
CANONICAL = Dialect(
    title="layer of a TF Lite operation",
    modules={module: module for module in FULL_NAME.modules.values()},
    leaves={
        leaf: leaf
        for kind in ("", "temporal_")
        for leaf in (
            f"{kind}conv.weight",
            f"{kind}conv.bias",
            f"{kind}norm.weight",
            f"{kind}norm.bias",
            f"{kind}norm.running_mean",
            f"{kind}norm.running_var",
        )
    },
    scalars={
        "rezero.scale": ("rezero", "scale"),
        "squeeze_excitation.positional_encoding.scale": (
            "squeeze_excitation.positional_encoding",
            "scale",
        ),
    },
    separator=".",
    layout="torch",
)


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One convolution of the network, found in the file.

    Attributes:
        module: path of the block, such as ``block1_layer0.depthwise``.
        temporal: whether it is the part over frames of a split one.
        operation: what computes it.
    """

    module: str
    temporal: bool
    operation: Operation

    @property
    def prefix(self) -> str:
        """What its parameters begin with."""
        return f"{self.module}.{'temporal_' if self.temporal else ''}"

    @property
    def has_norm(self) -> bool:
        """Whether the network normalises behind it, and has no bias there."""
        return not self.module.startswith("classifier.") and "squeeze_excitation" not in self.module


class LiteNetwork:
    """A TF Lite file read as a MoViNet; answers what `GraphEvidence` does.

    Raises:
        ConversionError: the file has operations or names that are no MoViNet's.
    """

    def __init__(self, model: LiteModel) -> None:
        self.model = model
        _refuse_foreign(model)
        self.runner = LiteRunner(model)
        self._producer = {out: op for op in model.operations for out in op.outputs}
        self._consumers: dict[int, list[Operation]] = defaultdict(list)
        for operation in model.operations:
            for index in dict.fromkeys(operation.inputs):
                self._consumers[index].append(operation)
        self._convolutions = self._find_convolutions()
        self._scalars = self._find_scalars()
        self._gates = {
            module: self._gate_of(convolution)
            for module, convolution in self._convolutions.items()
            if module.endswith("squeeze_excitation.expand.")
        }

    # The parts ---------------------------------------------------------------------------------

    def _find_convolutions(self) -> dict[str, Convolution]:
        found: dict[str, Convolution] = {}
        nameless = []
        for operation in self.model.operations:
            if operation.kind not in _CONVOLUTIONS:
                continue
            place = self.model.tensors[operation.outputs[0]].place
            module = _module_of(place)
            if module is None:
                nameless.append(f"{operation.kind} {place or operation.index}")
                continue
            convolution = Convolution(module, bool(_TEMPORAL.search(place)), operation)
            if convolution.prefix in found:
                other = found[convolution.prefix].operation
                raise ConversionError(
                    f"operations {other.index} and {operation.index} both are {module} "
                    f"({place}); expected one"
                )
            found[convolution.prefix] = convolution
        if nameless:
            raise ConversionError(
                f"{len(nameless)} convolutions do not say by the names of their outputs which "
                f"layer of a MoViNet they are: {', '.join(nameless[:3])}; the names were stripped, "
                f"or it is another network; give a file with names, or the SavedModel it was made "
                f"from"
            )
        return found

    def _find_scalars(self) -> dict[str, tuple[Tensor, float]]:
        """Return the scalars that multiply: canonical parameter -> (tensor, value)."""
        found: dict[str, tuple[Tensor, float]] = {}
        for operation in self.model.operations:
            if operation.kind != "MUL":
                continue
            output = self.model.tensors[operation.outputs[0]]
            layer = layer_of(output.place)
            if layer is None:
                continue
            if _ENCODING_SCALE.search(output.place):
                parameter = f"{layer}.squeeze_excitation.positional_encoding.scale"
            elif _REZERO.search(output.place):
                parameter = f"{layer}.rezero.scale"
            else:
                continue
            value = self._only_constant(operation)
            numbers = np.unique(self.runner.constant(value.index).numpy())
            if len(numbers) != 1:
                raise ConversionError(
                    f"{output.place}: multiplies by {len(numbers)} different numbers, expected one "
                    f"scalar"
                )
            found[parameter] = (value, float(numbers[0]))
        return found

    def _only_constant(self, operation: Operation) -> Tensor:
        constants = [c for i in operation.inputs if (c := self._constant(i)) is not None]
        if len(constants) != 1:
            raise ConversionError(
                f"operation {operation.index} ({operation.kind}) has {len(constants)} constants, "
                f"expected one"
            )
        return constants[0]

    def _constant(self, index: int) -> Tensor | None:
        """Return the constant that a tensor is, unpacked from float16 or not; None if computed."""
        while index >= 0 and self.model.tensors[index].data is None:
            producer = self._producer.get(index)
            if producer is None or producer.kind != "DEQUANTIZE":
                return None
            index = producer.inputs[0]
        return self.model.tensors[index] if index >= 0 else None

    # Variables ---------------------------------------------------------------------------------

    def variables(self) -> SourceVariables:
        """Return the network's parameters; norms that were folded away do nothing."""
        variables = []
        for convolution in self._convolutions.values():
            variables += self._of_convolution(convolution)
        layers = {}
        for parameter, (tensor, value) in self._scalars.items():
            variables.append(_variable(parameter, tensor.name, np.float64(value)))
        for variable in variables:
            owner = variable.path.partition(".")[0]
            if owner.startswith("block"):
                layers[owner] = owner
        for layer in layers:
            if f"{layer}.rezero.scale" not in self._scalars:
                # A converter that folds it away leaves a factor of one.
                variables.append(_variable(f"{layer}.rezero.scale", "", np.float64(1.0)))
        return SourceVariables(
            variables, CANONICAL, layers, facts=self.facts(), size=self.clip_shape[2:4]
        )

    def _of_convolution(self, convolution: Convolution) -> list[Variable]:
        operation, prefix = convolution.operation, convolution.prefix
        factor, offset = 1.0, 0.0
        if prefix in self._gates:
            factor, offset = _FOLDED_GATES[self._gates[prefix].value]
        tensor = self._constant(operation.inputs[1])
        if tensor is None:
            raise ConversionError(f"{convolution.module}: its weight is computed, not a constant")
        place = self.model.tensors[operation.outputs[0]].place
        weight = _torch_kernel(operation.kind, tensor, convolution.temporal)
        channels = weight.shape[0]
        bias = np.zeros(channels)
        if len(operation.inputs) > 2 and operation.inputs[2] >= 0:
            constant = self._constant(operation.inputs[2])
            if constant is None or constant.shape != (channels,):
                raise ConversionError(
                    f"{convolution.module}: its bias is no constant of {channels} numbers"
                )
            bias = constant.real()
        made = {
            "conv.weight": weight / factor,
            ("norm.bias" if convolution.has_norm else "conv.bias"): (bias - offset) / factor,
        }
        if convolution.has_norm:
            made["norm.weight"] = np.ones(channels)
            made["norm.running_mean"] = np.zeros(channels)
            made["norm.running_var"] = np.full(channels, _FOLDED_VARIANCE)
        return [_variable(prefix + leaf, place, value) for leaf, value in made.items()]

    # What the graph says -----------------------------------------------------------------------

    def convolution(self, parameter: str, kernel_size: Triple) -> ConvolutionEvidence:
        """Return how the convolution with this weight strides and pads."""
        found = self._convolutions[parameter.removesuffix("conv.weight")]
        operation = found.operation
        name = self.model.tensors[operation.outputs[0]].place
        height, width = operation.options.get("strides", (1, 1))
        source = self._source(operation.inputs[0])
        causal = source is not None and source.kind == "CONCATENATION"
        valid = operation.options.get("padding") == "VALID"
        if found.temporal:
            if (height, width) != (1, 1) or (causal and not valid) or (valid and not causal):
                raise ConversionError(
                    f"{name}: strides {(height, width)} and padding "
                    f"{operation.options.get('padding')} over time; expected none"
                )
            return ConvolutionEvidence(name, (1, 1, 1), causal, frozenset({"same", "legacy"}))
        rules = {"same"}
        if kernel_size[1:] == (1, 1):
            rules = {"same", "legacy"}
        elif valid:
            raise ConversionError(f"{name}: pads VALID, expected SAME as a MoViNet does")
        return ConvolutionEvidence(name, (1, height, width), causal, frozenset(rules))

    def activation(self, parameter: str) -> Statement:
        """Return the activation behind the bias or batch normalisation offset `parameter`."""
        convolution = self._of_offset(parameter)
        candidates: dict[str, Function] = {**ACTIVATIONS, LINEAR: lambda x: x}
        name, place = self._function(convolution, candidates)
        return Statement(name, place)

    def gate(self, parameter: str) -> Statement:
        """Return the gate behind the bias `parameter`."""
        return self._gates[parameter.removesuffix("conv.bias")]

    def epsilon(self, parameter: str) -> float:
        """Return what the norms that do nothing add to the variance."""
        return FOLDED_EPSILON

    def pooled_over_time(self, parameter: str) -> Statement:
        """Return whether what reaches the convolution was pooled over frames: "time" or "space"."""
        operation = self._convolutions[parameter.removesuffix("conv.weight")].operation
        seen, queue = set(), [operation.inputs[0]]
        spatial = None
        while queue:
            producer = self._producer.get(queue.pop(0))
            if producer is None or producer.index in seen:
                continue
            seen.add(producer.index)
            place = self.model.tensors[producer.outputs[0]].place
            if producer.kind in ("SUM", "MEAN"):
                axes = self.runner.constant(producer.inputs[1]).reshape(-1).tolist()
                rank = len(self.model.tensors[producer.inputs[0]].shape)
                if rank == 5 and 1 in axes:
                    return Statement("time", place)
                spatial = spatial or place
                continue
            if producer.kind == "DIV" or producer.kind == "CUMSUM":
                return Statement("time", place)
            queue += producer.inputs
        if spatial is None:
            raise ConversionError(f"{parameter}: nothing is pooled in front of it")
        return Statement("space", spatial)

    def average_pool(self, parameter: str) -> str | None:
        """Check the pool in front of the convolution; return its place, if there is one."""
        operation = self._convolutions[parameter.removesuffix("conv.weight")].operation
        source = self._source(operation.inputs[0])
        if source is None or source.kind != "AVERAGE_POOL_2D":
            return None
        found = tuple(source.options[key] for key in ("window", "strides", "padding"))
        place = self.model.tensors[source.outputs[0]].place
        if found != ((3, 3), (2, 2), "SAME"):
            raise ConversionError(
                f"{place}: average pool {found[0]} with strides {found[1]} and padding {found[2]}, "
                f"expected (3, 3), (2, 2), SAME as in a MoViNet"
            )
        return place

    def constants_by_role(self) -> dict[tuple[int, int], torch.Tensor]:
        """Return what stands for rounded constants whose role says what was meant.

        A gate's factor is 0.16667, what a sum is multiplied by is one over how many were added up,
        and a positional encoding's rates are computed from its width. The converter keeps all of
        them in float32, float16 or 8 bits.

        Returns:
            (number of the operation, position of its input) -> value, for `LiteRunner`.
        """
        found = {}
        gates = {
            step.index
            for module, gate in self._gates.items()
            if gate.value == "hard_sigmoid_relu6"
            for step in self._elementwise_after(self._convolutions[module].operation.outputs[0])
        }
        for operation in self.model.operations:
            for position, index in enumerate(operation.inputs):
                constant = self._constant(index)
                if constant is None or constant.dtype.startswith("int32"):
                    continue
                if self._is_ceiling(operation, constant):
                    found[operation.index, position] = _exactly(KERAS_LINE.limit)
                elif operation.kind == "MUL":
                    other = operation.inputs[1 - position]
                    for meant in self._meant(operation, constant, other, gates):
                        # float16 has 11 bits, and 8-bit numbers are off by half a step of the
                        # largest.
                        near = float(meant.abs().max()) / 128
                        if np.allclose(constant.real(), meant, rtol=0, atol=near):
                            found[operation.index, position] = meant.expand(constant.shape)
                            break
        return found

    def _meant(
        self, operation: Operation, constant: Tensor, other: int, gates: set[int]
    ) -> Iterator[torch.Tensor]:
        """Yield what a factor may have been before it was rounded."""
        if operation.index in gates:
            yield _exactly(SIXTH)
        elif _ENCODING_ANGLE.search(self.model.tensors[operation.outputs[0]].place):
            width = constant.shape[-1]
            yield encoding_rates(width, torch.float64, "cpu")
            # Those of the sines or cosines alone, which are the same.
            yield encoding_rates(2 * width, torch.float64, "cpu")[::2]
        elif (share := self._share(other)) is not None:
            yield _exactly(share)

    def _share(self, index: int) -> float | None:
        """Return one over how many numbers a value is the sum of; None if it is no sum."""
        source = self._source(index)
        if source is None or source.kind != "SUM":
            return None
        before, after = (self.model.tensors[i].shape for i in (source.inputs[0], source.outputs[0]))
        return math.prod(after) / math.prod(before) if math.prod(before) else None

    def taps(self) -> dict[str, int]:
        """Return where the network's activations are: name as in `wiring` -> number of a tensor.

        What the converter folded away, or folded something into, is left out.
        """
        found: dict[str, int] = {}
        for prefix, convolution in self._convolutions.items():
            output = convolution.operation.outputs[0]
            fused = convolution.operation.options["activation"] != "linear"
            steps = [s for s in self._elementwise_after(output) if s.kind not in _PASSING]
            gate = self._gates.get(prefix)
            whole = gate is None or _FOLDED_GATES[gate.value] == (1.0, 0.0)
            if not fused and whole:
                found[prefix + ("norm" if convolution.has_norm else "conv")] = output
            if steps:
                found[f"{prefix}activation"] = steps[-1].outputs[0]
            elif fused:
                found[f"{prefix}activation"] = output
        for operation in self.model.operations:
            output = operation.outputs[0]
            place = self.model.tensors[output].place
            layer = layer_of(place)
            if layer is None:
                continue
            for pattern, kinds, name in _PLACES:
                if operation.kind in kinds and pattern.search(place):
                    found.setdefault(f"{layer}{name}", output)
        for signature in self.model.signatures.values():
            for name, index in signature.outputs.items():
                if name not in signature.inputs:
                    found["classifier"] = index
        return found

    def _of_offset(self, parameter: str) -> Convolution:
        for end in ("norm.bias", "conv.bias"):
            found = self._convolutions.get(parameter.removesuffix(end))
            if found is not None:
                return found
        raise ConversionError(f"{parameter}: nothing in the graph adds it to a convolution")

    def _source(self, index: int) -> Operation | None:
        """Return what computed a value, past what only passes it on."""
        producer = self._producer.get(index)
        while producer is not None and producer.kind in _PASSING:
            producer = self._producer.get(producer.inputs[0])
        return producer

    def _gate_of(self, convolution: Convolution) -> Statement:
        def shifted(name: str) -> Function:
            factor, offset = _FOLDED_GATES[name]
            return lambda y: GATES[name]((y - offset) / factor)

        name, place = self._function(convolution, {gate: shifted(gate) for gate in GATES})
        return Statement(name, place)

    def _function(
        self, convolution: Convolution, candidates: Mapping[str, Function]
    ) -> tuple[str, str]:
        """Return which function follows a convolution, and the place of its last operation."""
        operation = convolution.operation
        # What the convolution itself does to its result comes first.
        value = FUSED[operation.options["activation"]](torch.from_numpy(_GRID))
        values, last = {operation.outputs[0]: value}, operation.outputs[0]
        for step in self._elementwise_after(last):
            inputs = [values[i] if i in values else self._scalar(step, i) for i in _data(step)]
            values[step.outputs[0]] = self.runner.one_by_one(step, inputs)
            if step.kind not in _PASSING:
                last = step.outputs[0]
        found = values[last].numpy()
        place = self.model.tensors[last].place
        tolerance = _HALF_TOLERANCE if self.quantised_as() == "float16" else _GRID_TOLERANCE
        for name, function in candidates.items():
            if np.allclose(found, function(_GRID), rtol=0, atol=tolerance):
                return name, place
        shown = ", ".join(f"f({_GRID[i]:g}) = {found[i]:.4g}" for i in (120, 180, 240))
        raise ConversionError(f"{place}: computes none of {', '.join(candidates)}: {shown}")

    def _elementwise_after(self, start: int) -> Iterator[Operation]:
        """Yield the operations that compute from one value and scalars alone, number by number."""
        region = {start}
        for operation in self.model.operations:
            data = _data(operation)
            if operation.kind not in _ELEMENTWISE or not region.intersection(data):
                continue
            if all(i in region or self._is_scalar(i) for i in data):
                region.add(operation.outputs[0])
                yield operation

    def _is_scalar(self, index: int) -> bool:
        constant = self._constant(index)
        return constant is not None and constant.data is not None and constant.data.size == 1

    def _scalar(self, operation: Operation, index: int) -> torch.Tensor:
        constant = self._constant(index)
        assert constant is not None  # _elementwise_after takes no others
        if self._is_ceiling(operation, constant):
            return _exactly(KERAS_LINE.limit)
        return self.runner.constant(constant.index).reshape(())

    def _is_ceiling(self, operation: Operation, constant: Tensor) -> bool:
        """Whether a constant is a hard sigmoid's 1, too large for the scale that it shares.

        Its 8-bit scale is that of the gate's values, which calibration saw stay below; so the
        constant is the largest number that there is.
        """
        return (
            operation.kind == "MINIMUM"
            and constant.quantization is not None
            and constant.data is not None
            and bool((constant.data == np.iinfo(constant.data.dtype).max).all())
        )

    # What else the file says -------------------------------------------------------------------

    def facts(self) -> dict[str, str]:
        """Return who wrote the file, how its numbers are stored, and what became of the norms."""
        facts = {
            "stored_as": self.quantised_as(),
            "takes": " x ".join(map(str, self.clip_shape[1:4])) + " (frames, height, width)",
            "norms": "folded into the convolutions by the converter; they do nothing now",
        }
        if (version := _converter(self.model.metadata.get("CONVERSION_METADATA", b""))) is not None:
            facts["written_by"] = version
        return facts

    @property
    def clip_shape(self) -> tuple[int, ...]:
        """(batch, frames, height, width, 3) of what the file takes; zeros if it does not say."""
        for signature in self.model.signatures.values():
            for name, index in signature.inputs.items():
                shape = self.model.tensors[index].shape
                if name == "image" and len(shape) == 5:
                    return shape
        return 0, 0, 0, 0, 0

    def is_rounded(self) -> bool:
        """Whether the network's float32 cannot hold every number that the file's stand for."""
        gates = {gate.value for gate in self._gates.values()}
        return "hard_sigmoid_keras" in gates or self.quantised_as() in ("int8", "dynamic range")

    def quantised_as(self) -> str:
        """Return "int8", "dynamic range", "float16" or "float32"."""
        weights = [
            tensor
            for convolution in self._convolutions.values()
            if (tensor := self._constant(convolution.operation.inputs[1])) is not None
        ]
        kinds = {tensor.dtype for tensor in weights}
        if "int8" in kinds or "uint8" in kinds:
            quantises = any(op.kind == "QUANTIZE" for op in self.model.operations)
            return "int8" if quantises else "dynamic range"
        return "float16" if "float16" in kinds else "float32"


def _exactly(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _data(operation: Operation) -> tuple[int, ...]:
    """Return the inputs that hold values, and not a shape."""
    return operation.inputs[:1] if operation.kind in _PASSING else operation.inputs


def _converter(metadata: bytes) -> str | None:
    """Return the version that a converter left in its metadata, a small flatbuffer."""
    found = re.search(rb"\d+\.\d+\.\d+[-.\w]{0,20}", metadata[:4096])
    return f"TensorFlow {found[0].decode()}" if found else None


def _refuse_foreign(model: LiteModel) -> None:
    flex = sorted({op.kind for op in model.operations if op.kind.startswith("Flex")})
    if flex:
        raise ConversionError(
            f"a TF Lite file with TensorFlow's own operations ({', '.join(flex)}), as the "
            f"converter writes networks with 3-D convolutions; they are not read here; give the "
            f"SavedModel or checkpoint that it was made from"
        )


def _module_of(place: str) -> str | None:
    """Return the module of the network that a layer's full name speaks of."""
    if FULL_NAME.ignored is not None:
        place = FULL_NAME.ignored.sub("", place)
    for spelling, module in _SPELLINGS:
        if f"/{spelling}/" in f"/{place}/":
            if module in UNIQUE_MODULES:
                return module
            layer = layer_of(place)
            return None if layer is None else f"{layer}.{module}"
    return None


# Longest first: "classifier_head/head" is not "head".
_SPELLINGS = sorted(FULL_NAME.modules.items(), key=lambda item: -len(item[0]))


def _torch_kernel(kind: str, tensor: Tensor, temporal: bool) -> NDArray[np.float64]:
    """Return a weight as PyTorch's 2-D convolution has it: (out, in / groups, height, width)."""
    real: NDArray[np.float64] = tensor.real().astype(np.float64)
    if kind == "FULLY_CONNECTED" and real.ndim == 2:
        return real[:, :, None, None]
    if real.ndim != 4:
        raise ConversionError(f"{tensor.name}: a kernel of shape {tensor.shape}, expected 4 axes")
    if kind == "DEPTHWISE_CONV_2D":
        return real.transpose(3, 0, 1, 2)
    return real.transpose(0, 3, 1, 2)


def _variable(path: str, full_name: str, value: NDArray[np.float64] | np.float64) -> Variable:
    array = np.asarray(value)
    read: Callable[[], NDArray[np.float64]] = lambda: array  # noqa: E731
    return Variable(path, full_name, array.shape, "float64", -1, read)
