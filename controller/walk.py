"""The way of the policy's LSTM through the decisions of an architecture, and the gradient back along it.

The decisions are taken in blocks: a single decision, or all skip decisions of one layer, which are independent of each
other given the state. The LSTM is called once for each block, and reads what the block before chose: the embedding of
a token, or the mean of the anchors that were connected. The anchor of a node is the state after its last operation
token was read, or learned where no decision shapes it (an input of a cell).
The gradient is written by hand (backpropagation through time): what autograd would do in a few hundred small steps is
done for all calls at once where it does not depend on their order.

Letters: B episodes, T decisions, N blocks, A anchors, D decisions (or sources) of one block, H hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from child.space import Decision, SearchSpace

CONNECTIONS = ("skip", "input")


@dataclass(frozen=True)
class Block:
    """Consecutive decisions that one LSTM call serves: steps `start` to `stop`."""

    start: int
    stop: int
    kind: str
    table: str
    node: int
    sources: tuple[int, ...]

    @property
    def connects(self) -> bool:
        return self.kind in CONNECTIONS


def blocks_of(decisions: Sequence[Decision]) -> list[Block]:
    """Group decisions: the skips of one node together, everything else alone."""
    blocks: list[Block] = []
    for step, decision in enumerate(decisions):
        last = blocks[-1] if blocks else None
        if decision.kind == "skip" and last is not None and (last.kind, last.node) == ("skip", decision.node):
            blocks[-1] = Block(last.start, step + 1, "skip", last.table, last.node, last.sources + decision.sources)
        else:
            table = f"{decision.kind}{decision.num_choices}"
            blocks.append(Block(step, step + 1, decision.kind, table, decision.node, decision.sources))
    return blocks


def given_nodes(decisions: Sequence[Decision]) -> list[int]:
    """The nodes that may be connected to and that no decision shapes, such as the inputs of a cell."""
    shaped = {decision.node for decision in decisions if decision.kind not in CONNECTIONS}
    read = {source for decision in decisions if decision.kind in CONNECTIONS for source in decision.sources}
    return sorted(read - shaped)


def check_connections(space: SearchSpace) -> None:
    """Prove that the policy can read a space: every connection comes after the operations of the nodes it names.

    Raises:
        ValueError: A skip or input decision names a node whose decisions of another kind all come later.
    """
    seen = set(given_nodes(space.decisions))
    blocks = blocks_of(space.decisions)
    for before, block in pairwise([None, *blocks]):
        if before is not None and not before.connects:
            seen.add(before.node)
        missing = set(block.sources) - seen if block is not None and block.connects else set()
        if missing:
            name = space.decisions[block.start].name if block is not None else ""
            raise ValueError(f"decision {name!r} connects to node {min(missing)}, which has no operation before it")


class Route:
    """What is known of every walk through a space before it begins.

    Args:
        blocks: The blocks of the space's decisions.
        given: The nodes whose anchors are learned; theirs come first of the anchors.
        sizes: The tokens of each table, in the order in which their rows stand; the first row of all is what the
            first block reads.

    Attributes:
        rows: Where the rows begin that a block reads, by block; None where it reads connections.
        anchor_at: Which anchor the state of a block is, where it is one.
        num_anchors: A.
        sources: The anchors that a block of connections may choose.
    """

    def __init__(self, blocks: Sequence[Block], given: Sequence[int], sizes: Mapping[str, int]):
        self.blocks, self.num_given, self.sizes = tuple(blocks), len(given), [1, *sizes.values()]
        first = dict(zip(sizes, accumulate(self.sizes), strict=False))
        self.rows = [0, *(None if block.connects else first[block.table] for block in blocks[:-1])]
        # The states that connections may name: -1, -2, ... are the given ones.
        latest = {node: place - len(given) for place, node in enumerate(given)}
        named: dict[int, list[int]] = {}
        for number, block in enumerate(blocks):
            before = blocks[number - 1]
            if number and not before.connects and before.node >= 0:
                latest[before.node] = number
            if block.connects:
                named[number] = [latest[source] for source in block.sources]
        used = sorted({state for states in named.values() for state in states if state >= 0})
        place = {state: at for at, state in enumerate([*range(-len(given), 0), *used])}
        self.num_anchors = len(place)
        self.anchor_at = {state: place[state] for state in used}
        self.sources = {number: _index([place[state] for state in states]) for number, states in named.items()}


def _index(places: list[int]) -> slice | Tensor:
    """The places to pick from a tensor; where they follow each other, as in a chain, a slice, which copies nothing."""
    stop = places[-1] + 1
    return slice(places[0], stop) if places == list(range(places[0], stop)) else torch.tensor(places)


class Cell(NamedTuple):
    """The weights of the LSTM as a walk reads them.

    They are transposed to (inputs, outputs), and doubled where they make the candidate: tanh(x) = 2 sigmoid(2x) - 1 is
    left with its sigmoid, which PyTorch computes three times faster on the processor.

    Args:
        inputs, recurrent: What the mean of the connected anchors and the state before add to the gates, (H, 4H) each.
        bias: Of the gates, (4H).
        rows: What the first block's input, and each token of every table, adds to the gates, (1 + tokens, 4H).
        given: The learned anchors, (given, H).
    """

    inputs: Tensor
    recurrent: Tensor
    bias: Tensor
    rows: Tensor
    given: Tensor


class Walk:
    """A walk of B architectures, as far as it has come; `step` goes on to the next block.

    Args:
        route: Through which blocks.
        cell: The weights.
        num: B.

    Attributes:
        gates: The sigmoids of input, forget and output gate and candidate, (N, B, 4H).
        cells: Before each call and after the last, doubled as their tanh reads them, (N + 1, B, H), and the sigmoids,
            `bends`, (N, B, H).
        states: The states that decide the blocks, (N, B, H).
        anchors: (A, B, H).
        means: The mean that was read of the connected anchors, (B, H), by the block that reads it, and `shares`, the
            part that each source has in it, (D, B).
    """

    def __init__(self, route: Route, cell: Cell, num: int):
        self.route, self.cell = route, cell
        hidden, calls = len(cell.recurrent), len(route.blocks)
        self.gates = cell.bias.new_empty(calls, num, 4 * hidden)
        self.cells = cell.bias.new_empty(calls + 1, num, hidden)
        self.cells[0] = 0
        self.bends = cell.bias.new_empty(calls, num, hidden)
        self.states = cell.bias.new_empty(calls, num, hidden)
        self.anchors = cell.bias.new_empty(route.num_anchors, num, hidden)
        if route.num_given:
            self.anchors[: route.num_given] = cell.given[:, None]
        self.means: dict[int, Tensor] = {}
        self.shares: dict[int, Tensor] = {}
        # Views, made once, since making one takes as long as adding two states.
        parts = (self.gates, *self.gates.unflatten(2, (4, hidden)).unbind(2), self.bends, self.states)
        self._calls = list(zip(*(part.unbind(0) for part in parts), strict=True))
        self._cells, self._anchors = self.cells.unbind(0), self.anchors.unbind(0)
        self._tables = dict(zip(accumulate(route.sizes, initial=0), cell.rows.split(route.sizes), strict=False))

    def step(self, number: int, tokens: Tensor) -> Tensor:
        """Read what the block before `number` chose in tokens (T, B), and give the state that decides this one."""
        route, weights = self.route, self.cell
        gates, opening, keeping, showing, candidate, bend, state = self._calls[number]
        row, before = route.rows[number], route.blocks[number - 1]
        if number == 0:
            gates.copy_(weights.rows[0])
        elif row is None:
            shares = self._shares(before, tokens[before.start : before.stop])
            mean = (self.anchors[route.sources[number - 1]] * shares[:, :, None]).sum(dim=0)
            self.means[number], self.shares[number] = mean, shares
            torch.addmm(weights.bias, mean, weights.inputs, out=gates)
        else:
            torch.index_select(self._tables[row], 0, tokens[before.start], out=gates)
        if number:
            gates.addmm_(self._calls[number - 1][-1], weights.recurrent)
        gates.sigmoid_()
        new = self._cells[number + 1]
        torch.mul(keeping, self._cells[number], out=new).sub_(opening, alpha=2).addcmul_(opening, candidate, value=4)
        torch.sigmoid(new, out=bend)
        torch.neg(showing, out=state).addcmul_(showing, bend, value=2)
        if number in route.anchor_at:
            self._anchors[route.anchor_at[number]].copy_(state)
        return state

    def to_end(self, tokens: Tensor) -> "Walk":
        """The whole walk of given architectures, tokens (T, B)."""
        for number in range(len(self.route.blocks)):
            self.step(number, tokens)
        return self

    def _shares(self, block: Block, chosen: Tensor) -> Tensor:
        """What part each source has in the mean that is read: of the connected ones all the same, (D, B)."""
        if block.kind == "input":
            return functional.one_hot(chosen[0], len(block.sources)).t().to(self.anchors.dtype)
        connected = chosen.to(self.anchors.dtype)
        return connected / (1 + connected.sum(dim=0))


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, walk: Walk, tokens: Tensor, *cell: Tensor) -> tuple[Tensor, Tensor]:
        ctx.route, ctx.tokens, ctx.shares, ctx.means = walk.route, tokens, walk.shares, walk.means
        states, anchors = walk.states.view_as(walk.states), walk.anchors.view_as(walk.anchors)
        ctx.save_for_backward(*cell, walk.gates, walk.cells, walk.bends, states)
        return states, anchors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        *cell, gates, cells, bends, states = ctx.saved_tensors
        route: Route = ctx.route
        weights, tokens = Cell(*cell), ctx.tokens
        opening, keeping, showing, candidate = gates.chunk(4, dim=2)
        # What each gate moves by itself: the doubled cell, or in the third place the state; and the cell the state.
        by_gate = torch.addcmul(gates, gates, gates, value=-1)
        parts = by_gate.unflatten(2, (4, -1))
        for part, moved in enumerate((4 * candidate - 2, cells[:-1], 2 * bends - 1, 4 * opening)):
            parts[:, :, part].mul_(moved)
        bending = torch.addcmul(bends, bends, bends, value=-1).mul_(showing).mul_(2)
        # From the last call to the first.
        by_state, by_anchor = (gradient.clone() for gradient in gradients)
        by_cell = torch.zeros_like(cells[0])
        back, back_inputs = weights.recurrent.t(), weights.inputs.t()
        calls = zip(*(each.unbind(0) for each in (by_state, by_gate, *parts.unbind(2), keeping, bending)), strict=True)
        calls = list(calls)
        anchors = by_anchor.unbind(0)
        for number in reversed(range(len(calls))):
            this, all_gates, opened, kept, shown, proposed, keep, bend = calls[number]
            if number in route.anchor_at:
                this += anchors[route.anchor_at[number]]
            by_cell.addcmul_(this, bend)
            for gate in (opened, kept, proposed):
                gate.mul_(by_cell)
            shown.mul_(this)
            by_cell.mul_(keep)
            if number:
                calls[number - 1][0].addmm_(all_gates, back)
            if number in ctx.shares:
                added = ctx.shares[number][:, :, None] * (all_gates @ back_inputs)
                sources = route.sources[number - 1]
                if isinstance(sources, slice):
                    by_anchor[sources].add_(added)
                else:
                    by_anchor.index_add_(0, sources, added)
        # What does not depend on the order of the calls.
        by_rows = torch.zeros_like(weights.rows)
        by_rows[0] = by_gate[0].sum(dim=0)
        told = {number: row for number, row in enumerate(route.rows) if number and row is not None}
        if told:
            rows = torch.stack([tokens[route.blocks[number - 1].start] + row for number, row in told.items()])
            by_rows.index_add_(0, rows.flatten(), by_gate[list(told)].flatten(0, 1))
        by_inputs, by_bias = torch.zeros_like(weights.inputs), torch.zeros_like(weights.bias)
        if ctx.means:
            reading = by_gate[list(ctx.means)].flatten(0, 1)
            by_inputs = torch.cat([*ctx.means.values()]).t() @ reading
            by_bias = reading.sum(dim=0)
        by_recurrent = states[:-1].flatten(0, 1).t() @ by_gate[1:].flatten(0, 1)
        return None, None, by_inputs, by_recurrent, by_bias, by_rows, by_anchor[: route.num_given].sum(dim=1)


def states_and_anchors(walk: Walk, cell: Cell, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The states (N, B, H) and anchors (A, B, H) of a walk, which can be differentiated by the weights, once.

    Args:
        walk: Walked to its end.
        cell: The weights that it was walked with, with their graph.
        tokens: What it chose, (T, B).
    """
    states, anchors = _Differentiable.apply(walk, tokens, *cell)  # type: ignore[misc]
    return states, anchors
