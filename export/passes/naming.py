"""Names of nodes, tensors and weights: after the modules that they come from, each once."""

from __future__ import annotations

import onnx


def name_after_modules(graph: onnx.GraphProto) -> None:
    """Name all nodes, in place, and what they make and hold after them; inputs and outputs of the graph keep their names.

    `/encoder_8/encoder_8.1/encoder_8.1.0/Conv` becomes `encoder_8.1.0/Conv`; its weights `encoder_8.1.0.weight`, `.bias`.
    A node without a name gets its operator's.
    """
    renamed: dict[str, str] = {}
    taken = {value.name for value in (*graph.input, *graph.output)}
    nodes: set[str] = set()
    for node in graph.node:
        path, _, operator = node.name.removeprefix("/").rpartition("/")
        module = path.rpartition("/")[2]
        # the clean-up calls what it fuses after the tensor that comes out
        operator = operator.removesuffix("_output_0") or node.op_type
        node.name = unique(f"{module}/{operator}" if module else operator, nodes)
        for name in node.output:
            if name and name not in taken:
                renamed[name] = unique(f"{node.name}_out", taken)
    _own_weights(graph, taken)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]


def names_in(graph: onnx.GraphProto) -> set[str]:
    """All names of tensors and nodes."""
    inner = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
    return inner | {value.name for value in (*graph.input, *graph.output, *graph.initializer)}


def unique(name: str, taken: set[str]) -> str:
    """The name, or it with the first number that is free; taken from then on."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def _own_weights(graph: onnx.GraphProto, taken: set[str]) -> None:
    """Name weights and constants after the operators that use them.

    The clean-up merged equal ones (the zero biases of two layers): small ones become each operator's own again, so that a
    name says one thing. Weights of convolutions stay shared where they are.
    """
    shared = {initializer.name: initializer for initializer in graph.initializer}
    del graph.initializer[:]
    weights: dict[str, str] = {}
    for node in graph.node:
        weighted = node.op_type in ("Conv", "ConvTranspose", "Gemm")
        module = node.name.rpartition("/")[0] or node.name
        for index, name in enumerate(node.input):
            if name not in shared:
                continue
            if name not in weights:
                own = graph.initializer.add()
                own.CopyFrom(shared[name])
                role = f"{module}.{('weight', 'bias')[index - 1]}" if weighted and index else f"{node.name}_constant"
                own.name = unique(role, taken)
                if weighted and index == 1:
                    weights[name] = own.name
                node.input[index] = own.name
            else:
                node.input[index] = weights[name]


def label(node: onnx.NodeProto) -> str:
    """A node as an error calls it."""
    return f"node {node.name} ({node.op_type})" if node.name else f"a node without a name ({node.op_type})"
