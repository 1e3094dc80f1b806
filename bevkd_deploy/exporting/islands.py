"""Which nodes of a student graph stay in FP32 when the rest goes to a lower precision, decided from its structure.

Rules, first match wins:

1. Inputs: everything between a graph input and the first convolution. Point coordinates reach 50 m and more, where
   FP16 has steps of 3 cm; the convolution takes offsets and features of order one, which FP16 holds well. Pixel
   normalisation comes along: it is the same place.
2. Outputs: the last convolution of each head and everything after it (sigmoid, peaks, TopK, exp, atan2, position).
   Cell indices do not fit FP16 (integers above 2048 are not exact), and logits rounded to FP16 make neighbouring
   cells tie as peaks. These convolutions are 1x1 and cheap.
3. Softmax: its sum over the depth bins.
4. Patterns of the recipe (`export.keep_fp32`).
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import onnx

from bevkd_deploy.contracts.errors import ExportError
from bevkd_deploy.contracts.sidecar import Island

WEIGHTED_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
LARGE_SUM_OPS = frozenset({"Softmax", "LogSoftmax", "ReduceLogSumExp"})

INPUT_REASON = "inputs up to the first convolution: coordinates, offsets, pixel normalisation"
OUTPUT_REASON = "head outputs, scores, peaks, TopK and box decoding"
SUM_REASON = "softmax: sum over a large axis"
PATTERN_REASON = "keep_fp32 of the recipe: {}"


def fp32_islands(graph: onnx.GraphProto, keep_fp32: Sequence[str] = ()) -> tuple[Island, ...]:
    """Islands of a graph, in the order of the rules; a node is in one island at most.

    Args:
        graph: FP32 graph with unique node names, in topological order.
        keep_fp32: shell patterns of node names.

    Raises:
        ExportError: a pattern matches no node.
    """
    flow = _Flow(graph)
    names = [node.name for node in graph.node]
    rules: list[tuple[str, set[str]]] = [
        (INPUT_REASON, flow.before_first_weight()),
        (OUTPUT_REASON, flow.from_last_weight()),
        (SUM_REASON, {node.name for node in graph.node if node.op_type in LARGE_SUM_OPS}),
    ]
    for pattern in keep_fp32:
        matching = {name for name in names if fnmatchcase(name, pattern)}
        if not matching:
            raise ExportError(
                f"keep_fp32 pattern {pattern!r} matches no node. Node names look like {names[len(names) // 2]!r}; "
                "patterns take * and ?"
            )
        rules.append((PATTERN_REASON.format(pattern), matching))
    taken: set[str] = set()
    islands = []
    for reason, members in rules:
        nodes = tuple(name for name in names if name in members and name not in taken)
        taken.update(nodes)
        if nodes:
            islands.append(Island(reason=reason, nodes=nodes))
    return tuple(islands)


def last_weighted(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Weighted operators with no other after them: the last convolution of each head, in graph order."""
    tail = _Flow(graph).from_last_weight()
    return [node for node in graph.node if node.name in tail and node.op_type in WEIGHTED_OPS]


class _Flow:
    """Reachability between the nodes of a graph and its inputs, outputs and weighted operators."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._nodes = list(graph.node)
        producer = {value: node for node in self._nodes for value in node.output}
        self._inputs = {value.name for value in graph.input}
        self._parents = {n.name: [producer[v] for v in n.input if v in producer] for n in self._nodes}
        self._children: dict[str, list[onnx.NodeProto]] = {node.name: [] for node in self._nodes}
        for node in self._nodes:
            for parent in self._parents[node.name]:
                self._children[parent.name].append(node)

    def before_first_weight(self) -> set[str]:
        """Nodes on a path from a graph input to a weighted operator, with none of those before them."""
        fed: set[str] = set()
        weighted: set[str] = set()  # nodes that are, or come after, a weighted operator
        for node in self._nodes:
            parents = self._parents[node.name]
            if node.op_type in WEIGHTED_OPS or any(parent.name in weighted for parent in parents):
                weighted.add(node.name)
            elif any(v in self._inputs for v in node.input) or any(parent.name in fed for parent in parents):
                fed.add(node.name)
        return fed & self._leading_to_weight()

    def from_last_weight(self) -> set[str]:
        """Nodes with no weighted operator after them, and the weighted operators that only such nodes follow."""
        if all(node.op_type not in WEIGHTED_OPS for node in self._nodes):
            return set()
        leads = self._leading_to_weight()
        return {node.name for node in self._nodes if node.name not in leads}

    def _leading_to_weight(self) -> set[str]:
        leads: set[str] = set()
        for node in reversed(self._nodes):
            children = self._children[node.name]
            if any(child.op_type in WEIGHTED_OPS or child.name in leads for child in children):
                leads.add(node.name)
        return leads
