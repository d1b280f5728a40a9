"""Where each named activation of a MoViNet is in TensorFlow's graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from converters.dialects import state_name
from converters.graph import PASS_THROUGH, Graph, Value
from converters.graph_evidence import GraphEvidence
from movinet_port.spec import LayerSpec, ModelSpec
from parity.errors import ComparisonError
from parity.taps import INPUT


class GraphTaps(GraphEvidence):
    """Finds the taps of a MoViNet in a SavedModel's graph, from the variables that each uses.

    Args:
        graph: the flat graph.
        variables: canonical parameter -> value of the variable's resource in the graph.
        spec: of the network that the graph computes.
    """

    def __init__(self, graph: Graph, variables: dict[str, Value], spec: ModelSpec) -> None:
        super().__init__(graph, variables)
        self.spec = spec

    def find(self) -> dict[str, str]:
        """Return tap -> node, in the order of computation.

        Raises:
            ComparisonError: a place that the network must have is not in the graph.
        """
        taps = {INPUT: self._graph.inputs["image"][0]}
        try:
            for name, find in self._places():
                taps[name] = find()
        except (IndexError, StopIteration, KeyError) as error:
            raise ComparisonError(
                f"the graph has no {name}, where a MoViNet has one ({error!r})"
            ) from error
        return taps

    def states(self) -> dict[str, tuple[str, str]]:
        """Return argument of the signature -> (canonical state, node of the state after a clip)."""
        found: dict[str, tuple[str, str]] = {}
        outputs = {value[0] for value in self._graph.outputs.values()}
        for argument, (node, _) in self._graph.inputs.items():
            name = state_name(argument)
            if name is not None:
                found[argument] = (name, self._nearest(node, outputs, argument))
        return found

    def _places(self) -> Iterator[tuple[str, Callable[[], str]]]:
        yield from self._conv_block("stem")
        for layer in self.spec.layers():
            yield from self._bottleneck(layer)
        yield from self._conv_block("head")
        yield "pool", lambda: self._source_of_conv("classifier.hidden.conv")
        yield "classifier.hidden.conv", lambda: self._biased("classifier.hidden.conv")
        yield "classifier.hidden.activation", lambda: self._activation("classifier.hidden.conv")
        yield "classifier.output.conv", lambda: self._biased("classifier.output.conv")
        yield "classifier", self._logits

    def _bottleneck(self, layer: LayerSpec) -> Iterator[tuple[str, Callable[[], str]]]:
        name = layer.name
        if layer.has_skip_projection:
            skip = f"{name}.skip"
            if layer.downsamples:
                yield f"{skip}.pool", lambda: self._through(self._source_of_conv(f"{skip}.conv"))
            yield from self._conv_block(skip, activation=False)
        yield from self._conv_block(f"{name}.expansion")
        yield from self._conv_block(f"{name}.depthwise")
        if self.spec.splits_time and layer.kernel_size[0] > 1:
            yield from self._conv_block(f"{name}.depthwise", "temporal_")
        if self.spec.se_type != "none":
            yield from self._squeeze_excitation(f"{name}.squeeze_excitation")
        yield from self._conv_block(f"{name}.projection", activation=False)
        yield f"{name}.rezero", lambda: self._scaled(f"{name}.rezero.scale")
        yield (
            name,
            lambda: self._consumer(self._scaled(f"{name}.rezero.scale"), "AddV2"),
        )

    def _conv_block(
        self, block: str, prefix: str = "", activation: bool = True
    ) -> Iterator[tuple[str, Callable[[], str]]]:
        start = f"{block}.{prefix}"
        yield f"{start}conv", lambda: self._convolved(f"{start}conv")
        yield f"{start}norm", lambda: self._affine_output(f"{start}norm.bias")
        if activation:
            yield f"{start}activation", lambda: self._activation(f"{start}norm")

    def _squeeze_excitation(self, name: str) -> Iterator[tuple[str, Callable[[], str]]]:
        if self.spec.se_type in ("2d", "2plus3d"):
            yield f"{name}.spatial_pool", lambda: self._pooled(name)[-1]
        if self.spec.se_type in ("3d", "2plus3d"):
            yield f"{name}.temporal_pool", lambda: self._pooled(name)[0]
        if self.spec.positional_encoding:
            yield (
                f"{name}.positional_encoding",
                lambda: self._source_of_conv(f"{name}.reduce.conv"),
            )
        for part in ("reduce", "expand"):
            conv = f"{name}.{part}.conv"
            yield conv, lambda conv=conv: self._biased(conv)  # type: ignore[misc]
            yield f"{name}.{part}.activation", lambda conv=conv: self._activation(conv)  # type: ignore[misc]
        yield name, lambda: self._consumer(self._activation(f"{name}.expand.conv"), "Mul")

    def _pooled(self, name: str) -> list[str]:
        """Return the nodes whose values are concatenated for the squeeze-excitation."""
        node = self._graph.nodes[self._source_of_conv(f"{name}.reduce.conv")]
        if self.spec.positional_encoding:
            node = self._graph.source(node.inputs[0])
        if node.op != "ConcatV2":
            return [node.name]
        sources = [self._graph.source(value) for value in node.inputs[:-1]]
        return [
            self._graph.source(source.inputs[0]).name if source.op == "Tile" else source.name
            for source in sources
        ]

    def _convolved(self, conv: str) -> str:
        return self._through(self._convolution_node(f"{conv}.weight").name)

    def _biased(self, conv: str) -> str:
        return self._through(self._affine_output(f"{conv}.bias"))

    def _activation(self, layer: str) -> str:
        last = self._end_of_elementwise(self._affine_output(f"{layer}.bias"))
        # Not the reshape in front of the next convolution.
        return self._graph.source((last, 0)).name

    def _scaled(self, parameter: str) -> str:
        return next(node.name for node, _ in self._uses(parameter) if node.op == "Mul")

    def _source_of_conv(self, conv: str) -> str:
        """Return what reaches a 1 x 1 convolution, which the first exports pad by nothing."""
        node = self._graph.source(self._convolution_node(f"{conv}.weight").inputs[0])
        while node.op == "Pad":
            node = self._graph.source(node.inputs[0])
        return node.name

    def _consumer(self, node: str, op: str) -> str:
        return next(user.name for user, _ in self._graph.users(node) if user.op == op)

    def _through(self, node: str) -> str:
        """Return the last node that only hands on what `node` makes, frames apart again."""
        while True:
            users = [user for user in self._graph.consumers(node) if user.op != "Shape"]
            if len(users) != 1 or users[0].op not in PASS_THROUGH:
                return node
            node = users[0].name
            if users[0].op == "Reshape":
                return node

    def _logits(self) -> str:
        states = {node for _, node in self.states().values()}
        names = [value[0] for value in self._graph.outputs.values() if value[0] not in states]
        if len(names) != 1:
            raise ComparisonError(
                f"the serving signature gives {len(names)} results beside its states, "
                f"expected one: the logits"
            )
        return names[0]

    def _nearest(self, node: str, outputs: set[str], argument: str) -> str:
        """Return the output that fewest operations separate from `node`: the state it becomes."""
        seen, queue = {node}, [node]
        while queue:
            current = queue.pop(0)
            if current in outputs:
                return current
            for user in self._graph.consumers(current):
                if user.name not in seen:
                    seen.add(user.name)
                    queue.append(user.name)
        raise ComparisonError(f"no result of the serving signature depends on its state {argument}")
