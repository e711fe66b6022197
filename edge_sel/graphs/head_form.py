"""Give the head a vector of features, which a closed form can be fitted to, wherever it is linear in one.

Where the head is a 1×1 convolution whose logits are averaged over the map, the map is averaged first: both are linear.
Where several layers make the logits together, what they take is joined to one vector, of which each gets its part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

import numpy as np

from edge_sel.errors import GraphError
from edge_sel.graphs.backbone import Cut
from edge_sel.graphs.ir import Forward, Node, Shape, live_nodes
from edge_sel.graphs.plans import behind_the_body, head_layers, head_names, running_statistics
from edge_sel.pack.plan_kinds import CLOSED, CLOSED_FORM_PLANS


def with_vector_features(forward: Forward) -> Forward:
    """The same classifier; all layers of its head take parts of one vector per image, as far as that is possible.

    What it computes changes by rounding alone. Where it is not possible, the graph stays as it is, and
    ``closed_form_obstacle`` says why.
    """
    try:
        layers = head_layers(forward)
    except GraphError:
        return forward
    if layers_obstacle(forward) or (len(layers) == 1 and layers[0].op == "Gemm"):
        return forward
    head = Extension(forward, "head")
    widths = [forward.initializers[layer.inputs[1]].shape[1] for layer in layers]
    vectors = [_vector(head, layer.inputs[0]) for layer in layers]
    if len(vectors) > 1:
        joined = head.add("Concat", tuple(vectors), (None, sum(widths)), "features", axis=1)
        ends = np.cumsum(widths)
        vectors = [head.part(joined, int(end) - width, int(end)) for end, width in zip(ends, widths, strict=True)]
    taken = {}
    for layer, vector, width in zip(layers, vectors, widths, strict=True):
        if layer.op == "Conv":  # it takes the vector as a map of one pixel
            vector = head.add("Reshape", (vector, head.ints(-1, width, 1, 1)), (None, width, 1, 1), "pixel")
        taken[layer.outputs[0]] = vector
    last = {id(node) for node in behind_the_body(forward)}
    moved = []
    for node in (node for node in forward.nodes if id(node) in last):
        made = node.outputs[0]
        if len(forward.shape(made)) == 4:
            head.shapes[made] = (*forward.shape(made)[:2], 1, 1)
        moved.append(replace(node, inputs=(taken[made], *node.inputs[1:])) if made in taken else node)
    before = [node for node in forward.nodes if id(node) not in last]
    return head.graph([*before, *head.nodes, *moved])


def _vector(head: Extension, name: str) -> str:
    """A map's mean over its pixels, or the vector that it is."""
    _, *rest = head.forward.shape(name)
    if len(rest) == 1:
        return name
    if rest[1:] != [1, 1]:
        name = head.add("GlobalAveragePool", (name,), (None, rest[0], 1, 1), "pooled")
    return head.add("Flatten", (name,), (None, rest[0]), "vector", axis=1)


def without_relu_behind(forward: Forward) -> Forward:
    """The network without ReLU between head and logits, for a head that is still to be fitted.

    Raises:
        GraphError: the logits come from something else than linear layers.
    """
    taken = {id(node) for node in behind_the_body(forward) if node.op == "Relu"}
    nodes = (replace(node, op="Identity", attributes={}) if id(node) in taken else node for node in forward.nodes)
    return replace(forward, nodes=tuple(nodes))


def head_scale(forward: Forward) -> float:
    """The factor of what the layers of the head make together: ½ for a mean of two; 0 where they have no common one.

    Raises:
        GraphError: the logits come from something else than linear layers.
    """
    constants = {n: v for n, v in forward.initializers.items() if v.size == 1 and n not in forward.parameters}
    made = {name: node for node in forward.nodes for name in node.outputs}
    layers = {layer.outputs[0] for layer in head_layers(forward)}
    found: set[float] = set()
    waiting = [(forward.logits, 1.0)]
    while waiting:
        name, factor = waiting.pop()
        if name in layers:
            found.add(round(factor, 9))
            continue
        node = made[name]
        computed = [other for other in node.inputs if other in made]
        if node.op in ("Mul", "Div"):
            given = [constants[other] for other in node.inputs if other in constants]
            if len(given) != 1 or (node.op == "Div" and node.inputs[1] not in constants):
                return 0.0
            by = float(given[0].reshape(()))
            factor = factor * by if node.op == "Mul" else factor / by
        elif node.op == "Add" and len(computed) < len(node.inputs):  # another bias
            return 0.0
        waiting += [(other, factor) for other in (computed if node.op == "Add" else computed[:1])]
    return found.pop() if len(found) == 1 and 0.0 not in found else 0.0


def layers_obstacle(forward: Forward) -> str:
    """Why no closed form fits what is between the features and the logits; empty where one does.

    Raises:
        GraphError: the logits come from something else than linear layers.
    """
    layers, classes, behind = head_layers(forward), forward.shape(forward.logits)[-1], behind_the_body(forward)
    if node := next((node for node in behind if node.op == "Relu"), None):
        return f"Relu {node.name or node.outputs[0]} is between the head and the logits; a new head has none"
    if not head_scale(forward):
        node = next((node for node in behind if node.op in ("Mul", "Div", "Add")), layers[0])
        return f"{node.op} {node.name or node.outputs[0]} changes each class by another factor behind the head"
    if len(head_names(forward)) < sum(len(layer.inputs) - 1 for layer in layers):
        return "layers of the head share a weight"
    for layer in layers:
        where, rank = f"{layer.op} {layer.name or layer.outputs[0]}", len(forward.shape(layer.inputs[0]))
        if len(layer.inputs) < 3 or not layer.inputs[2]:
            return f"{where} has no bias"
        if rank != (2 if layer.op == "Gemm" else 4) or forward.initializers[layer.inputs[1]].shape[0] != classes:
            return f"{where} takes no vector of features"
    inside = {name for node in behind for name in node.outputs}
    for node in forward.nodes:
        if inside.isdisjoint(node.outputs) and inside.intersection(node.inputs):
            return f"{node.op} {node.name or node.outputs[0]} reads what the head makes"
    return ""


def closed_form_obstacle(forward: Forward, cut: Cut | None) -> str:
    """Why a network has no head in closed form; empty where it has one.

    Args:
        forward: with vector features where they are possible.
        cut: of the plan that trains the head alone.
    """
    try:
        if found := layers_obstacle(forward):
            return found
    except GraphError as error:
        return str(error)
    layers = head_layers(forward)
    width = sum(forward.initializers[layer.inputs[1]].shape[1] for layer in layers)
    if cut is not None and cut.shape == (width,):
        return ""
    if cut is None:
        return "nearly all of the work is in the head"
    after = live_nodes(forward.nodes, forward.logits, known=cut.tensor)
    node = next((node for node in after if cut.tensor in node.inputs), layers[0])
    size = "×".join(map(str, cut.shape))
    return f"{node.op} {node.name or node.outputs[0]} takes the last features that depend on the image alone ({size})"


def closed_form_reasons(forward: Forward, cut: Cut | None) -> dict[str, str]:
    """Of each plan in closed form that a network does not get, why; ``cut`` as in ``closed_form_obstacle``."""
    obstacle = closed_form_obstacle(forward, cut)
    if obstacle:
        return dict.fromkeys(CLOSED_FORM_PLANS, obstacle)
    return {} if running_statistics(forward) else {CLOSED: "the network has no batch statistics"}


class Extension:
    """New nodes for a forward graph, and its shapes, initializers and per-image tensors with them.

    Args:
        forward: the graph as it was.
        prefix: of all new names, which are then ``PREFIX::WHAT``.
    """

    def __init__(self, forward: Forward, prefix: str) -> None:
        self.forward, self.prefix = forward, prefix
        self.nodes: list[Node] = []
        self.shapes, self.initializers = dict(forward.shapes), dict(forward.initializers)
        self.per_image = set(forward.per_image)

    def add(self, op: str, inputs: tuple[str, ...], shape: Shape, what: str, **attributes: int) -> str:
        """Append an operator; the name of what it makes."""
        name = f"{self.prefix}::{what}"
        while name in self.shapes:
            name += "_"
        self.nodes.append(Node(op, inputs, (name,), dict(attributes), name))
        self.shapes[name] = shape
        self.per_image.add(name)
        return name

    def graph(self, nodes: Iterable[Node], parameters: Collection[str] = ()) -> Forward:
        """The graph of these nodes; ``parameters`` are new ones."""
        return replace(
            self.forward,
            nodes=tuple(nodes),
            shapes=self.shapes,
            initializers=self.initializers,
            per_image=frozenset(self.per_image),
            parameters=self.forward.parameters.union(parameters),
        )

    def part(self, name: str, start: int, end: int) -> str:
        """Of a vector [N, F]: features ``start`` to ``end``."""
        bounds = [self.ints(value) for value in (start, end, 1)]
        return self.add("Slice", (name, *bounds), (None, end - start), f"part{start}")

    def ints(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant(",".join(map(str, values)), np.array(values, np.int64))

    def constant(self, what: str, value: np.ndarray) -> str:
        """The name of an initializer with this value."""
        name = f"{self.prefix}::{what}"
        self.initializers[name], self.shapes[name] = value, value.shape
        return name
