"""Where each named activation of a MoViNet is in TensorFlow's graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from converters.dialects import state_name
from converters.graph_evidence import GraphEvidence
from converters.interpreter.graph import PASS_THROUGH, Graph, Value
from movinet_port.spec import ModelSpec
from movinet_port.wiring import Node, Operation, wiring
from parity.errors import ComparisonError


class GraphTaps(GraphEvidence):
    """Finds the taps of a MoViNet in a SavedModel's graph, from the variables that each uses.

    Args:
        graph: the flat graph.
        variables: canonical parameter -> value of the variable's resource in the graph.
        spec: of the network that the graph computes.
    """

    def __init__(self, graph: Graph, variables: dict[str, Value], spec: ModelSpec) -> None:
        super().__init__(graph, variables)
        self._wiring = wiring(spec)

    def find(self) -> dict[str, str]:
        """Return tap -> node, in the order of computation.

        Raises:
            ComparisonError: a place that the network must have is not in the graph.
        """
        places: dict[Operation, Callable[[str, Node], str]] = {
            "input": lambda tap, node: self._graph.inputs["image"][0],
            "conv": self._conv,
            "norm": lambda tap, node: self._affine_output(f"{tap}.bias"),
            "activation": self._activation,
            "window mean": lambda tap, node: self._through(self._source_of_conv(tap)),
            "frame mean": self._mean,
            "clip mean": self._mean,
            "encoding": lambda tap, node: self._source_of_conv(tap),
            "product": lambda tap, node: self._user(taps[node.sources[0]], "Mul"),
            "scale": lambda tap, node: self._scaled(tap),
            "sum": lambda tap, node: self._user(taps[node.sources[0]], "AddV2"),
            "logits": lambda tap, node: self._logits(),
        }
        taps: dict[str, str] = {}
        for tap, node in self._wiring.items():
            try:
                taps[tap] = places[node.operation](tap, node)
            except (IndexError, StopIteration, KeyError) as error:
                raise ComparisonError(
                    f"the graph has no {tap}, where a MoViNet has one ({error!r})"
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

    def _conv(self, tap: str, node: Node) -> str:
        if f"{tap}.bias" in self._variables:
            return self._through(self._affine_output(f"{tap}.bias"))
        return self._through(self._convolution_node(f"{tap}.weight").name)

    def _activation(self, tap: str, node: Node) -> str:
        last = self._end_of_elementwise(self._affine_output(f"{node.sources[0]}.bias"))
        # Not the reshape in front of the next convolution.
        return self._graph.source((last, 0)).name

    def _mean(self, tap: str, node: Node) -> str:
        found = self._graph.nodes[self._source_of_conv(tap)]
        user = next(
            user
            for user in self._wiring.values()
            if tap in user.sources and user.operation in ("conv", "encoding")
        )
        if user.operation == "encoding":
            found = self._graph.source(found.inputs[0])
        if found.op != "ConcatV2":
            return found.name
        found = self._graph.source(found.inputs[user.sources.index(tap)])
        return self._graph.source(found.inputs[0]).name if found.op == "Tile" else found.name

    def _scaled(self, tap: str) -> str:
        return next(node.name for node, _ in self._uses(f"{tap}.scale") if node.op == "Mul")

    def _source_of_conv(self, tap: str) -> str:
        """Return what reaches the next 1 x 1 convolution; the first exports pad it by nothing."""
        behind = itertools.dropwhile(lambda name: name != tap, self._wiring)
        conv = next(name for name in behind if self._wiring[name].operation == "conv")
        node = self._graph.source(self._convolution_node(f"{conv}.weight").inputs[0])
        while node.op == "Pad":
            node = self._graph.source(node.inputs[0])
        return node.name

    def _user(self, node: str, op: str) -> str:
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
