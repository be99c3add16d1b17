"""The router's memory: the exact ids of every trajectory, found by text, by ids or by a key.

A trajectory is a path of pieces. The engine sampled some of them; the others come before and between its replies.
Trajectories of one namespace share their common first pieces, so a namespace is a tree. A piece matches only as a
whole, because part of a text has no ids of its own.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from token_router.prefix_map import PrefixMap

PIECE_TOKENS = 80  # overhead of a piece: about 1,600 bytes, and an id with its text and log-probability takes 20


@dataclass(frozen=True, slots=True)
class Piece:
    """One side's text and its ids. The ids are authoritative; the text is only for finding them."""

    text: str
    ids: "array[int]"
    sampled: bool = False  # by the engine: loss mask 1
    log_probs: "array[float] | None" = None  # one per id of a sampled piece; None if the engine sent none
    weight_version: str | None = None  # of the weights that sampled it

    def __post_init__(self) -> None:
        if self.log_probs is not None and len(self.log_probs) != len(self.ids):
            raise ValueError(f"{len(self.ids)} ids with {len(self.log_probs)} log-probabilities.")


@dataclass(frozen=True, slots=True)
class Path:
    """The pieces of a trajectory, or of its beginning."""

    pieces: tuple[Piece, ...] = ()

    def ids(self) -> list[int]:
        """The ids, prompt included."""
        return [token for piece in self.pieces for token in piece.ids]

    def mask(self) -> list[int]:
        """1 for each id that the engine sampled, 0 for the rest."""
        return [int(piece.sampled) for piece in self.pieces for _ in piece.ids]

    def log_probs(self) -> list[float] | None:
        """One per id, 0.0 where the mask is 0; None if the engine left any out."""
        values: list[float] = []
        for piece in self.pieces:
            if piece.sampled and piece.log_probs is None:
                return None
            values += piece.log_probs or [0.0] * len(piece.ids)
        return values

    def extended(self, piece: Piece) -> "Path":
        """The path with the piece appended, unless the piece is empty."""
        return Path((*self.pieces, piece)) if piece.text or piece.ids else self


class _Node:
    """One piece in a tree; a root holds an empty piece."""

    __slots__ = ("by_ids", "by_text", "keys", "namespace", "parent", "piece", "stored_at")

    def __init__(self, namespace: str, parent: "_Node | None", piece: Piece) -> None:
        self.namespace = namespace
        self.parent = parent
        self.piece = piece
        self.by_text: PrefixMap[str, _Node] = PrefixMap()  # children
        self.by_ids: PrefixMap[array[int], _Node] = PrefixMap()  # the same
        self.keys: list[str] = []
        self.stored_at = 0

    def child(self, piece: Piece) -> "_Node | None":
        """The child with the same text, ids and author."""
        for node in self.by_text.values(piece.text):
            if node.piece.ids == piece.ids and node.piece.sampled == piece.sampled:
                return node
        return None

    def path(self) -> Path:
        pieces: list[Piece] = []
        node = self
        while node.parent is not None:
            pieces.append(node.piece)
            node = node.parent
        return Path(tuple(reversed(pieces)))


class TokenTrie:
    """All trajectories, limited to `max_tokens`. A piece counts as its ids plus `piece_tokens`; above the limit, the
    least recently used paths lose their last pieces.

    If one text has several encodings, or one key several paths, the one stored last is found.
    """

    def __init__(self, max_tokens: int, *, piece_tokens: int = PIECE_TOKENS) -> None:
        self.max_tokens = max_tokens
        self.tokens = 0  # ids of all pieces
        self._piece_tokens = piece_tokens
        self._roots: dict[str, _Node] = {}
        self._by_key: dict[str, _Node] = {}
        # Least recently used first. A path is touched from its end to its root, so no node comes before its children,
        # and the first node never has any.
        self._recency: OrderedDict[_Node, None] = OrderedDict()
        self._clock = count(1)

    @property
    def trajectories(self) -> int:
        return len(self._roots)

    def add(self, namespace: str, pieces: Iterable[Piece], key: str | None = None) -> None:
        """Stores a path, sharing pieces that are already stored; `key` names its end."""
        pieces = list(pieces)
        if not pieces:
            return
        node = self._roots.setdefault(namespace, _Node(namespace, None, Piece("", array("i"))))
        for piece in pieces:
            node = self._step(node, piece)
        if key is not None:
            self._name(key, node)
        self._touch(node)
        while self.tokens + self._piece_tokens * len(self._recency) > self.max_tokens:
            self._forget(self._recency.popitem(last=False)[0])

    def longest(self, namespace: str, whole: str | Sequence[int]) -> Path:
        """The longest stored prefix of a text, or of ids, that ends in a sampled piece; an empty path without one.

        Paths that end in unsampled text are not worth finding: encoding the text again gives the same ids, or better
        ones if a short prompt happens to be a prefix of a longer one.
        """
        ends = {node: length for node, length in self._matches(namespace, whole) if node.piece.sampled}
        longest = max(ends, key=lambda node: (ends[node], node.stored_at), default=None)
        return self._found(longest) or Path()

    def whole_text(self, namespace: str, text: str) -> Path | None:
        """The path that is exactly this text."""
        ends = [node for node, length in self._matches(namespace, text) if length == len(text)]
        return self._found(max(ends, key=lambda node: node.stored_at, default=None))

    def by_key(self, key: str) -> Path | None:
        return self._found(self._by_key.get(key))

    def _matches(self, namespace: str, whole: str | Sequence[int]) -> Iterator[tuple[_Node, int]]:
        """Every node whose path is a prefix of `whole`, with the length of that path."""
        is_text = isinstance(whole, str)
        key: Any = whole if is_text else array("i", whole)
        open_ends = [(root, 0) for root in [self._roots.get(namespace)] if root]
        while open_ends:
            node, length = open_ends.pop()
            yield node, length
            children: PrefixMap[Any, _Node] = node.by_text if is_text else node.by_ids
            for begin, child in children.prefixes_of(key[length:]):
                open_ends.append((child, length + len(begin)))

    def _found(self, node: _Node | None) -> Path | None:
        if node is None or node.parent is None:
            return None
        self._touch(node)
        return node.path()

    def _step(self, parent: _Node, piece: Piece) -> _Node:
        node = parent.child(piece)
        if node is None:
            node = _Node(parent.namespace, parent, piece)
            parent.by_text.add(piece.text, node)
            parent.by_ids.add(piece.ids, node)
            self.tokens += len(piece.ids)
        node.piece = piece  # sampled again: its log-probabilities are the new ones
        node.stored_at = next(self._clock)
        return node

    def _name(self, key: str, node: _Node) -> None:
        if key in self._by_key:
            self._by_key[key].keys.remove(key)
        self._by_key[key] = node
        node.keys.append(key)

    def _touch(self, node: _Node) -> None:
        """Makes a path the most recently used one, its end first."""
        while node.parent is not None:
            self._recency[node] = None
            self._recency.move_to_end(node)
            node = node.parent

    def _forget(self, node: _Node) -> None:
        """Removes a node without children."""
        parent = node.parent
        assert parent is not None
        parent.by_text.remove(node.piece.text, node)
        parent.by_ids.remove(node.piece.ids, node)
        self.tokens -= len(node.piece.ids)
        for key in node.keys:
            del self._by_key[key]
        if parent.parent is None and not parent.by_text:
            del self._roots[node.namespace]
