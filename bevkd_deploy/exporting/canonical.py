"""Give an exported graph names that a person can read and that do not change from one export to the next.

A node is named after the module it came from and its operator, `img_backbone.layer1.0.conv1/Conv`, which is what
`keep_fp32` patterns, lint findings and engine logs show. The exporter's notes (stack traces with file paths of the
exporting machine, inferred shapes) are dropped.
"""

from __future__ import annotations

import ast
from collections import Counter

import onnx

#: Where the torch exporter notes the module path of a node: a printed list of strings.
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"

#: Nodes that belong to no submodule: those before the first one, and those after the last.
_BEFORE, _AFTER = "input", "decode"

_FILE_FIELDS = ("metadata_props", "doc_string")


def canonicalize(model: onnx.ModelProto, graph_name: str, scope_prefix: str = "") -> None:
    """Rename nodes and values in place and drop what describes the exporting machine.

    Args:
        model: a model of the torch exporter, weights named by their parameters.
        graph_name: the new name of the graph.
        scope_prefix: leading part of module and parameter names that is dropped, with its dot.
    """
    graph = model.graph
    node_names = _node_names(graph, scope_prefix)
    values = _value_names(graph, node_names, scope_prefix)
    for node, name in zip(graph.node, node_names, strict=True):
        node.name = name
        node.input[:] = [values.get(value, value) for value in node.input]
        node.output[:] = [values.get(value, value) for value in node.output]
    for tensor in graph.initializer:
        tensor.name = values.get(tensor.name, tensor.name)
    _strip(model, graph_name)


def _node_names(graph: onnx.GraphProto, prefix: str) -> list[str]:
    weights = {tensor.name for tensor in graph.initializer}
    seen: Counter[str] = Counter()
    names = []
    inside = False  # whether a submodule has been met
    for node in graph.node:
        scope = _scope(node, weights, prefix)
        inside = inside or bool(scope)
        name = f"{scope or (_AFTER if inside else _BEFORE)}/{node.op_type}"
        names.append(f"{name}_{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def _scope(node: onnx.NodeProto, weights: set[str], prefix: str) -> str:
    """Module path of a node; a convolution's is its weight's, because a folded batch norm leaves its own path."""
    for value in node.input:
        if value in weights and value.endswith(".weight"):
            return str(value).removesuffix(".weight").removeprefix(prefix)
    noted = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES_KEY), "[]")
    scopes = ast.literal_eval(noted)[:-1]  # the last entry is the operation itself
    scope = str(scopes[-1]) if scopes else ""
    return "" if scope + "." == prefix else scope.removeprefix(prefix)


def _value_names(graph: onnx.GraphProto, node_names: list[str], prefix: str) -> dict[str, str]:
    """New name of each value that is neither a graph input nor a graph output."""
    fixed = {value.name for value in [*graph.input, *graph.output]}
    names: dict[str, str] = {}
    parameters = {tensor.name for tensor in graph.initializer if "." in tensor.name}
    for node, name in zip(graph.node, node_names, strict=True):
        for position, value in enumerate(node.output):
            if value and value not in fixed:
                names[value] = name if len(node.output) == 1 else f"{name}:{position}"
    constants = 0
    order = [value for node in graph.node for value in node.input]
    initializers = {tensor.name for tensor in graph.initializer}
    for value in order:
        if value in initializers and value not in names:
            if value in parameters:
                # The exporter calls the bias of a folded batch norm "<weight>_bias".
                names[value] = value.removeprefix(prefix).replace(".weight_bias", ".bias")
            else:
                names[value] = f"constant_{constants}"
                constants += 1
    return names


def _strip(model: onnx.ModelProto, graph_name: str) -> None:
    graph = model.graph
    graph.name = graph_name
    for holder in [model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer]:
        for field in _FILE_FIELDS:
            holder.ClearField(field)
    del graph.value_info[:]
    # "2.13.0+cpu" and "2.13.0+cu130" write the same graph.
    model.producer_version = model.producer_version.partition("+")[0]
