"""The way of the policy through the decisions of an architecture, and the gradient back along it.

The decisions are taken in blocks: a single decision, or all skip decisions of one layer, which are independent of each
other given the state. The LSTM is called once for each block, and reads what the block before chose: the embedding of
a token, or the sum of the anchors that were connected over one more than their number, as in ENAS's public code. The
anchor of a node is the state after its last operation
token was read, or learned where no decision shapes it (an input of a cell). A head reads the logits of a choice from
the state that decides it; connections attend to anchors.
The gradient is written by hand (backpropagation through time): what autograd would do in a few hundred small steps is
done for all calls at once where it does not depend on their order. Episodes come last in every array, so that a gate
is one piece of memory, a call one matrix product, and embeddings with their bias are columns of its matrix. Of arrays
this small the work is mostly in the calling, which costs NumPy half of what it costs PyTorch.

Letters: B episodes, T decisions, N blocks, A anchors, D decisions (or sources) of one block, P pairs of a connecting
block and a source, R rows of the tables of tokens, C the largest number of choices, H hidden size, M as much of it as
is read of anchors: H, or 0 in a space where nothing connects.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

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


class Parameters(NamedTuple):
    """The policy's parameters, or their gradients, or their shapes.

    Args:
        gates, bias: Of the LSTM, (4H, 2H) and (4H): from the input and the state before to input, forget and output
            gate and candidate.
        rows: What the first call reads, and then the embeddings of all tables, (R - 1, H).
        heads: The weights of all heads, one below the other, (choices, H).
        key, query, score: The attention's, (H, H), (H, H) and (1, H); empty in a space without connections.
        given: The learned anchors, (given, H).
    """

    gates: Any
    bias: Any
    rows: Any
    heads: Any
    key: Any
    query: Any
    score: Any
    given: Any


class Route:
    """What is known of every walk through a space before it begins.

    Args:
        blocks: The blocks of the space's decisions.
        given: The nodes whose anchors are learned; theirs come first of the anchors.
        sizes: The tokens of each table, in the order in which their rows stand.
        heads: Which rows of all heads decide a block, for those that do not connect, by the block.
        max_choices: C.
        hidden: H.

    Attributes:
        rows: Of each table. Before them all are those of no token and of the beginning.
        num_rows: R.
        shapes: Of the parameters, which lie in one vector of `num_parameters`.
        anchor_at: Which anchor the state of a block is, where it is one.
        num_anchors: A.
        sources: The anchors that a connecting block may choose, by the block.
        pairs: Where its pairs stand among all pairs of a connecting block and a source, by the block.
        num_pairs: P.
        num_read: M.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        given: Sequence[int],
        sizes: Mapping[str, int],
        heads: Mapping[int, slice],
        max_choices: int,
        hidden: int,
    ):
        self.blocks, self.num_given, self.heads = tuple(blocks), len(given), heads
        self.max_choices, self.hidden = max_choices, hidden
        stops = list(accumulate(sizes.values(), initial=2))
        self.rows = {table: slice(*ends) for table, ends in zip(sizes, pairwise(stops), strict=True)}
        self.num_rows = stops[-1]
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
        stops = list(accumulate(map(len, named.values()), initial=0))
        self.pairs = {number: slice(*ends) for number, ends in zip(named, pairwise(stops), strict=True)}
        self.num_pairs = stops[-1]
        self.num_read = attends = hidden if self.num_pairs else 0
        num_choices = max((head.stop for head in heads.values()), default=0)
        self.shapes = Parameters(
            (4 * hidden, 2 * hidden), (4 * hidden,), (self.num_rows - 1, hidden), (num_choices, hidden),
            (attends, attends), (attends, attends), (min(attends, 1), attends), (len(given), hidden),
        )  # fmt: skip
        stops = list(accumulate(map(math.prod, self.shapes), initial=0))
        self._spans, self.num_parameters = [slice(*ends) for ends in pairwise(stops)], stops[-1]

    def parts(self, flat: Any) -> Parameters:
        """The parameters, or gradients, in a vector of all: views of it, a tensor's or an array's."""
        return Parameters(*(flat[span].reshape(shape) for span, shape in zip(self._spans, self.shapes, strict=True)))


def _index(places: list[int]) -> slice | list[int]:
    """The places to pick from an array; where they follow each other, as in a chain, a slice, which copies nothing."""
    stop = places[-1] + 1
    return slice(places[0], stop) if places == list(range(places[0], stop)) else places


class Weights:
    """The parameters as a walk reads them.

    Args:
        route: Through which blocks.
        flat: All parameters in one vector.
        temperature: Divides what heads and attention give.

    Attributes:
        gates: From all that a call reads to what the gates are the tanh of, (4H, M + R + H): the columns of the mean
            of the connected anchors, of the tokens, each with the bias, and of the state before. A sigmoid is
            (1 + tanh(x / 2)) / 2, with which one tanh makes all four.
        attention: Key and query, (2H, H).
        heads, score: As in `Parameters`.
    """

    def __init__(self, route: Route, flat: NDArray[Any], temperature: float):
        self.route, self.flat, self.temperature, hidden, mean = route, flat, temperature, route.hidden, route.num_read
        self.parameters = given = route.parts(flat)
        self.gates = np.empty((4 * hidden, mean + route.num_rows + hidden), flat.dtype)
        self.gates[:, :mean] = given.gates[:, :mean]
        self.gates[:, -hidden:] = given.gates[:, hidden:]
        told = self.gates[:, mean:-hidden]
        np.matmul(given.gates[:, :hidden], given.rows.T, out=told[:, 1:])
        told[:, 0] = 0
        told += given.bias[:, None]
        self.gates[: 3 * hidden] *= 0.5
        self.attention = np.concatenate([given.key, given.query])
        self.heads, self.score = given.heads / temperature, given.score / temperature

    def back(self, by_gates: NDArray[Any], by_heads: NDArray[Any], *rest: NDArray[Any]) -> NDArray[Any]:
        """The gradient by all parameters, from that by the weights: gates, heads, key, query, score and given."""
        hidden, mean, flat = self.route.hidden, self.route.num_read, np.empty_like(self.flat)
        by = self.route.parts(flat)
        by_gates[: 3 * hidden] *= 0.5
        told = by_gates[:, mean:-hidden]
        np.matmul(told[:, 1:], self.parameters.rows, out=by.gates[:, :hidden])
        by.gates[:, :mean] += by_gates[:, :mean]
        by.gates[:, hidden:] = by_gates[:, -hidden:]
        np.sum(told, axis=1, out=by.bias)
        np.matmul(told[:, 1:].T, self.parameters.gates[:, :hidden], out=by.rows)
        for place, gradient in zip(by[3:], (by_heads, *rest), strict=True):
            place[...] = gradient
        for place in (by.heads, by.score):
            place /= self.temperature
        return flat


class Walk:
    """A walk of B architectures, as far as it has come; `step` goes on to the next block.

    Args:
        route: Through which blocks.
        weights: Of the policy.
        tokens: What is chosen, (T, B), filled in as the walk goes on.
        constant: Logits are constant * tanh(what the heads and the attention give); None for no squashing.
        keep: Whether `back` will be asked. If not, each call writes over what the one before left in `reads`, `gates`,
            `cells`, `bent` and `mixed`, so that all of a step stays in the processor's cache.

    Attributes:
        reads: What each call reads, (N + 1, M + R + H, B): the connected anchors, blended, a one for the token that
            was chosen last, and the state before; so that of N + 1 the last is but the state after all calls.
        gates: Input, forget and output gate and candidate, (N, 4H, B).
        cells: Before each call and after the last, (N + 1, H, B), and their tanh, `bent`, (N, H, B).
        anchors: (A, H, B), and their keys.
        shares: The part that each source has in the mean that is read, (D, B), by the block that reads it.
        mixed: Of every pair the tanh of key and query, (P, H, B).
        choices: The logits of the blocks that do not connect, (blocks, C, B); what is not a choice has 0.
        scores: Those of the others, (P, B). A skip decision has the logits (-x, x), of which this is x.
    """

    def __init__(
        self, route: Route, weights: Weights, tokens: NDArray[np.int64], constant: float | None, keep: bool = True
    ):
        self.route, self.weights, self.tokens, self.constant, self.keep = route, weights, tokens, constant, keep
        hidden, calls, num = route.hidden, len(route.blocks), tokens.shape[1]
        rows, dtype = route.num_read + route.num_rows, weights.gates.dtype
        self.reads = self._room(calls + 1, rows + hidden)
        self.reads[:, route.num_read : rows] = 0
        self.gates = self._room(calls, 4 * hidden)
        self.cells = self._room(calls + 1, hidden)
        self.cells[0] = 0
        self.bent = self._room(calls, hidden)
        self.anchors = np.empty((route.num_anchors, hidden, num), dtype)
        self.keys = np.empty_like(self.anchors)
        if route.num_given:
            given = weights.parameters.given
            self.anchors[: route.num_given] = given[:, :, None]
            self.keys[: route.num_given] = (given @ weights.parameters.key.T)[:, :, None]
        self.shares: dict[int, NDArray[Any]] = {}
        most = max(len(block.sources) for block in route.blocks)
        self.mixed = np.empty((route.num_pairs if keep else most, hidden, num), dtype)
        self.choices = np.zeros((len(route.heads), route.max_choices, num), dtype)
        self.scores = np.empty((route.num_pairs, num), dtype)
        self.states = self.reads[1:, rows:]
        self._numbers = np.arange(route.num_rows)[:, None]
        self._logits = iter(self.choices)
        # PyTorch multiplies matrices of this size a little faster than NumPy, and smaller ones no faster.
        self._matrix, self._attention = torch.from_numpy(weights.gates), torch.from_numpy(weights.attention)
        self._from_told = self._matrix[:, route.num_read :]
        self._asked = self._matrix.new_empty(2 * hidden, num)
        self._key, self._query = self._asked.numpy().reshape(2, hidden, num)
        # Views of each call's part of all this, made at once; where all have the same room, they are the same.
        own = calls if keep else 1
        reads, gates, states = (torch.from_numpy(each[:own]) for each in (self.reads, self.gates, self.states))
        tensors = reads.unbind(0), reads[:, route.num_read :].unbind(0), gates.unbind(0), states.unbind(0)
        self._products = list(zip(*tensors, strict=True)) * (calls // own)
        self._parts = list(map(tuple, self.gates[:own].reshape(own, 4, hidden, num))) * (calls // own)

    def _room(self, calls: int, rows: int) -> NDArray[Any]:
        """For what the calls leave, (calls, rows, B): of each its own, or, if nothing is kept, of all the same."""
        shape = (rows, self.tokens.shape[1])
        if self.keep:
            return np.empty((calls, *shape), self.weights.gates.dtype)
        room = np.empty(shape, self.weights.gates.dtype)
        return np.lib.stride_tricks.as_strided(room, (calls, *shape), (0, *room.strides))

    def step(self, number: int) -> NDArray[Any]:
        """Go on to block `number`, given the tokens before it, and give the logits that decide it, (D, B)."""
        route, block, hidden, mean = self.route, self.route.blocks[number], self.route.hidden, self.route.num_read
        reads, gates, state = self.reads[number], self.gates[number], self.states[number]
        everything, told, product, after = self._products[number]
        before = route.blocks[number - 1]
        if not self.keep:
            reads[mean : mean + route.num_rows] = 0
        if number == 0:  # there is no state before, and all read the same
            reads[mean + 1] = 1
            gates[...] = self.weights.gates[:, mean + 1, None]
        elif before.connects:
            reads[mean] = 1
            shares = self.shares[number] = self._shares(before)
            np.einsum("dhb,db->hb", self.anchors[route.sources[number - 1]], shares, out=reads[:mean])
            torch.mm(self._matrix, everything, out=product)
        else:
            told_of = reads[mean:][route.rows[before.table]]
            np.equal(self._numbers[: len(told_of)], self.tokens[before.start], out=told_of, casting="unsafe")
            torch.mm(self._from_told, told, out=product)
        np.tanh(gates, out=gates)
        sigmoids = gates[: 3 * hidden]
        sigmoids *= 0.5
        sigmoids += 0.5
        opening, keeping, showing, candidate = self._parts[number]
        new = np.multiply(keeping, self.cells[number], out=self.cells[number + 1])
        new += opening * candidate
        np.multiply(showing, np.tanh(new, out=self.bent[number]), out=state)
        if number in route.anchor_at or block.connects:
            torch.mm(self._attention, after, out=self._asked)
            if number in route.anchor_at:
                place = route.anchor_at[number]
                self.anchors[place], self.keys[place] = state, self._key
            logits = self._attend(number) if block.connects else self._read(number, state)
        else:
            logits = self._read(number, state)
        if self.constant is not None:
            np.tanh(logits, out=logits)
            logits *= self.constant
        return logits

    def to_end(self) -> "Walk":
        """The whole walk, where all is chosen."""
        for number in range(len(self.route.blocks)):
            self.step(number)
        return self

    def _read(self, number: int, state: NDArray[Any]) -> NDArray[Any]:
        """What the block's head gives, (choices, B)."""
        head = self.weights.heads[self.route.heads[number]]
        return np.matmul(head, state, out=next(self._logits)[: len(head)])

    def _attend(self, number: int) -> NDArray[Any]:
        """The scores of the sources of a connecting block, v . tanh(key + query), (D, B)."""
        pairs, sources = self.route.pairs[number], self.route.sources[number]
        mixed = self.mixed[pairs] if self.keep else self.mixed[: pairs.stop - pairs.start]
        np.add(self.keys[sources], self._query, out=mixed)
        np.tanh(mixed, out=mixed)
        scores = self.scores[pairs]
        np.matmul(self.weights.score, mixed, out=scores[:, None])
        return scores

    def _shares(self, block: Block) -> NDArray[Any]:
        """What part each source has in the blend that is read: of n connected ones 1 / (n + 1) each, (D, B)."""
        if block.kind == "input":
            chosen = np.equal.outer(np.arange(len(block.sources)), self.tokens[block.start])
            return chosen.astype(self.gates.dtype)
        connected = self.tokens[block.start : block.stop].astype(self.gates.dtype)
        connected /= np.add.reduce(connected, initial=1)
        return connected

    def back(self, by_choices: NDArray[Any], by_scores: NDArray[Any]) -> NDArray[Any]:
        """The gradient by all parameters, from that by the logits.

        Raises:
            ValueError: The walk kept nothing.
        """
        if not self.keep:
            raise ValueError("this walk was made with keep=False and has no gradient; make it with keep=True")
        if self.constant is not None:  # what it bends
            by_choices = by_choices * (self.constant - self.choices * self.choices / self.constant)
            by_scores = by_scores * (self.constant - self.scores * self.scores / self.constant)
        by_states, by_heads = np.zeros_like(self.bent), np.zeros_like(self.weights.heads)
        for (number, head), by_logits in zip(self.route.heads.items(), by_choices, strict=True):
            by_logits = by_logits[: head.stop - head.start]
            np.matmul(self.weights.heads[head].T, by_logits, out=by_states[number])
            by_heads[head] += by_logits @ self.states[number].T
        by_anchors, *attention = self._back_through_attention(by_scores, by_states)
        by_gates = self._back_through_calls(by_states, by_anchors)
        return self.weights.back(by_gates, by_heads, *attention, by_anchors[: self.route.num_given].sum(axis=2))

    def _back_through_attention(self, by_scores: NDArray[Any], by_states: NDArray[Any]) -> list[NDArray[Any]]:
        """The gradient by anchors, key, query and score; that by the states is added to `by_states`."""
        key, query, score = self.weights.parameters.key, self.weights.parameters.query, self.weights.score
        by_keys = np.zeros_like(self.anchors)
        if not self.route.num_pairs:
            return [by_keys, key, query, score]  # all empty
        by_mixed = self.mixed * by_scores[:, None]
        by_score = by_mixed.sum(axis=(0, 2))[None]
        by_mixed *= self.mixed
        np.subtract(by_scores[:, None], by_mixed, out=by_mixed)
        by_mixed *= score.T
        by_query = np.zeros_like(query)
        for number, pairs in self.route.pairs.items():
            asked = by_mixed[pairs].sum(axis=0)
            by_query += asked @ self.states[number].T
            by_states[number] += query.T @ asked
            _credit(by_keys, self.route.sources[number], by_mixed[pairs])
        by_key = np.matmul(by_keys, self.anchors.transpose(0, 2, 1)).sum(axis=0)
        return [np.matmul(key.T, by_keys), by_key, by_query, by_score]

    def _back_through_calls(self, by_states: NDArray[Any], by_anchors: NDArray[Any]) -> NDArray[Any]:
        """The gradient by `Weights.gates`, from the last call to the first; by the anchors it is added to theirs."""
        route, hidden, mean = self.route, self.route.hidden, self.route.num_read
        # What each gate moves by itself: the cell, or in the third place the state; and the cell the state.
        opening, keeping, showing, candidate = (self.gates[:, part * hidden :][:, :hidden] for part in range(4))
        by_gates = 1 - self.gates
        by_gates *= self.gates
        by_gates *= 2  # a sigmoid s = (1 + tanh(z)) / 2 moves by 2 s (1 - s) with z
        opened, kept, shown, proposed = (by_gates[:, part * hidden :][:, :hidden] for part in range(4))
        opened *= candidate
        kept *= self.cells[:-1]
        shown *= self.bent
        np.multiply(candidate, candidate, out=proposed)
        np.subtract(1, proposed, out=proposed)
        proposed *= opening
        bending = 1 - self.bent * self.bent
        bending *= showing
        by_matrix, by_cell = torch.zeros_like(self._matrix), np.zeros_like(self.cells[0])
        by_told, through, back = by_matrix[:, mean:], torch.from_numpy(by_gates), torch.from_numpy(by_states)
        back_to_means, back_to_states = self._matrix[:, :mean].t(), self._matrix[:, -hidden:].t()
        for number in reversed(range(len(route.blocks))):
            by_state, gates = by_states[number], through[number]
            if number in route.anchor_at:
                by_state += by_anchors[route.anchor_at[number]]
            bending[number] *= by_state
            by_cell += bending[number]
            opened[number] *= by_cell
            kept[number] *= by_cell
            proposed[number] *= by_cell
            shown[number] *= by_state
            by_cell *= keeping[number]
            everything, told, *_ = self._products[number]
            if number in self.shares:
                by_matrix.addmm_(gates, everything.t())
                by_mean = torch.mm(back_to_means, gates).numpy()
                _credit(by_anchors, route.sources[number - 1], by_mean * self.shares[number][:, None])
            elif number:
                by_told.addmm_(gates, told.t())
            else:  # it read that it is the first, which is the second row; a product with one row would round otherwise
                by_told[:, :2].addmm_(gates, told[:2].t())
            if number:
                back[number - 1].addmm_(back_to_states, gates)
        return by_matrix.numpy()


def _credit(anchors: NDArray[Any], sources: slice | list[int], added: NDArray[Any]) -> None:
    """Add to the anchors what belongs to each source, one that is named twice included."""
    if isinstance(sources, slice):
        anchors[sources] += added
    else:
        np.add.at(anchors, sources, added)
