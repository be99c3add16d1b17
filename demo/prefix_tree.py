"""Token sequences merged where they begin alike, so that a training step computes a shared prefix once.

The samples of a question share their prompt, and mostly the first search with its passages. In a tree each such token
is one node; a node attends to itself and to its ancestors. Losses and gradients are those of the separate sequences.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class PrefixTree:
    """Nodes are numbered so that each follows its parent."""

    ids: list[int]  # (N,) token of each node
    positions: list[int]  # (N,) depth
    paths: list[list[int]]  # one for each sequence: the node of each of its tokens


def merge(sequences: Sequence[Sequence[int]]) -> PrefixTree:
    """The tree of some token sequences."""
    nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node
    positions: list[int] = []
    paths = []
    for sequence in sequences:
        parent, path = -1, []
        for position, token in enumerate(sequence):
            parent = nodes.setdefault((parent, token), len(nodes))
            if parent == len(positions):
                positions.append(position)
            path.append(parent)
        paths.append(path)
    return PrefixTree([token for _, token in nodes], positions, paths)


def hidden_states(model: PreTrainedModel, trees: Sequence[PrefixTree]) -> torch.Tensor:
    """(B, N, D) last hidden states of the nodes of B trees, padded on the right to the largest."""
    size = max(len(tree.ids) for tree in trees)
    ids = torch.zeros(len(trees), size, dtype=torch.long)
    positions = torch.zeros_like(ids)
    visible = torch.eye(size, dtype=torch.bool).repeat(len(trees), 1, 1)  # padding sees itself, so no row is empty
    for row, tree in enumerate(trees):
        ids[row, : len(tree.ids)] = torch.tensor(tree.ids)
        positions[row, : len(tree.ids)] = torch.tensor(tree.positions)
        for path in map(torch.tensor, tree.paths):
            visible[row, path[:, None], path] |= torch.ones(len(path), len(path), dtype=torch.bool).tril()
    device = model.device
    return model.model(
        ids.to(device), attention_mask=visible[:, None].to(device), position_ids=positions.to(device), use_cache=False
    ).last_hidden_state


def neighbours(sequences: Sequence[Sequence[int]], nodes: int) -> Iterator[tuple[list[int], PrefixTree]]:
    """Sequences that begin alike, as their indices and their tree of at most `nodes` nodes (or of one sequence)."""
    lot: list[int] = []
    tree = merge([])
    for index in sorted(range(len(sequences)), key=lambda i: list(sequences[i])):
        larger = merge([sequences[i] for i in (*lot, index)])
        if lot and len(larger.ids) > nodes:
            yield lot, tree
            lot, larger = [], merge([sequences[index]])
        lot.append(index)
        tree = larger
    if lot:
        yield lot, tree
