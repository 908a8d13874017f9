"""The search space of NAS-Bench-201 (Dong and Yang 2020): a cell of four nodes, one of five operations on each edge."""

from collections.abc import Hashable

from child.space import Decision, Genotype, Graph, SearchSpace, nearest

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
WORDS = [[f"{operation}~{source}" for operation in OPERATIONS] for source, _ in EDGES]


class NASBench201Space(SearchSpace):
    """Six decisions, one for each edge from an earlier node to a later one; every node is the sum of what comes in."""

    name = "nasbench201"
    decisions = tuple(Decision(f"edge{i}{j}", "operation", OPERATIONS, j, (i,)) for i, j in EDGES)

    def text(self, genotype: Genotype) -> str:
        """The form that the benchmark's own tools use: `|nor_conv_3x3~0|+|none~0|skip_connect~1|+|...|`."""
        e01, e02, e12, e03, e13, e23 = (words[token] for words, token in zip(WORDS, genotype.tokens, strict=True))
        return f"|{e01}|+|{e02}|{e12}|+|{e03}|{e13}|{e23}|"

    def parse(self, text: str) -> Genotype:
        """Read what `text` wrote.

        Raises:
            ValueError: An edge or operation is unknown, missing or repeated.
        """
        chosen: dict[tuple[int, int], int] = {}
        for node, part in enumerate(text.strip().split("+"), 1):
            for edge in part.strip().strip("|").split("|"):
                operation, _, source = edge.strip().partition("~")
                if operation not in OPERATIONS:
                    raise ValueError(f"unknown operation {operation!r} in {text!r}; {nearest(operation, OPERATIONS)}")
                place = (int(source) if source.isdecimal() else -1, node)
                if place not in EDGES or place in chosen:
                    wrong = "is given twice" if place in chosen else "does not exist"
                    raise ValueError(f"the edge from {source!r} to node {node} {wrong} in {text!r}")
                chosen[place] = OPERATIONS.index(operation)
        missing = [edge for edge in EDGES if edge not in chosen]
        if missing:
            raise ValueError(f"the edge from {missing[0][0]} to node {missing[0][1]} is missing in {text!r}")
        return Genotype(self.name, tuple(chosen[edge] for edge in EDGES))

    def key(self, genotype: Genotype) -> Hashable:
        """The last node as a sum of terms, written out to the input: equal for cells that compute the same function.

        A skip-connection hands its node's terms on, an operation on nothing is nothing, and sums have no order. (The
        benchmark's `to_unique_str` keeps sums of sums apart, and so tells a few more cells apart.)
        """
        nodes: list[tuple[Hashable, ...]] = [("input",)]
        for node in (1, 2, 3):
            terms: list[Hashable] = []
            for (source, target), token in zip(EDGES, genotype.tokens, strict=True):
                if target != node or OPERATIONS[token] == "none" or not nodes[source]:
                    continue
                terms += nodes[source] if OPERATIONS[token] == "skip_connect" else [(token, nodes[source])]
            nodes.append(tuple(sorted(terms, key=repr)))
        return nodes[-1]

    def graph(self, genotype: Genotype) -> Graph:
        """The cell: its nodes, and an operation on every edge that is there."""
        nodes = [
            ("node0", "input", "input"),
            ("node1", "1", "sum"),
            ("node2", "2", "sum"),
            ("node3", "output", "output"),
        ]
        edges = []
        for (source, target), token in zip(EDGES, genotype.tokens, strict=True):
            name = f"edge{source}{target}"
            if OPERATIONS[token] == "none":
                continue
            nodes.append((name, OPERATIONS[token], "operation"))
            edges += [(f"node{source}", name), (name, f"node{target}")]
        return Graph(tuple(nodes), tuple(edges))
