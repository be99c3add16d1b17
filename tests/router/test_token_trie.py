"""The token router's store: what is stored is found whole, the bound holds, and nothing half is ever left behind."""

import random
import time
import tracemalloc
from array import array
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from token_router.prefix_map import PrefixMap
from token_router.token_trie import Path, Piece, TokenTrie


def piece(text: str, ids: list[int], *, sampled: bool = False, log_probs: list[float] | None = None) -> Piece:
    return Piece(text, array("i", ids), sampled, None if log_probs is None else array("d", log_probs))


PROMPT = piece("Q", [1, 2])
REPLY = piece("ab", [3, 4, 5], sampled=True, log_probs=[-0.1, -0.2, -0.3])
SEEN = piece(" doc ", [6])
LAST = piece("c", [7], sampled=True, log_probs=[-0.4])


def trie(*paths: list[Piece], max_tokens: int = 1000) -> TokenTrie:
    store = TokenTrie(max_tokens, piece_tokens=0)
    for path in paths:
        store.add("n", path)
    return store


# --- prefix map


@given(st.lists(st.text("ab", max_size=4)), st.text("ab", max_size=6))
def test_a_prefix_map_finds_every_key_that_a_text_begins_with(keys: list[str], whole: str) -> None:
    prefixes: PrefixMap[str, int] = PrefixMap()
    for number, key in enumerate(keys):
        prefixes.add(key, number)
    found = list(prefixes.prefixes_of(whole))
    expected = [(key, number) for number, key in enumerate(keys) if whole.startswith(key)]
    assert found == sorted(expected, key=lambda pair: (-len(pair[0]), pair[1]))


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 2), max_size=3)), max_size=20))
def test_a_prefix_map_of_ids_forgets_exactly_what_is_removed(steps: list[tuple[bool, list[int]]]) -> None:
    prefixes: PrefixMap[array[int], int] = PrefixMap()
    left: list[tuple[list[int], int]] = []
    for number, (remove, key) in enumerate(steps):
        if remove and left:
            old, value = left.pop(0)
            prefixes.remove(array("i", old), value)
        else:
            prefixes.add(array("i", key), number)
            left.append((key, number))
    assert len(prefixes) == len({tuple(key) for key, _ in left})
    for key, _ in left:
        assert prefixes.values(array("i", key)) == [number for other, number in left if other == key]


# --- what is found


def test_a_stored_path_is_found_by_its_text_with_mask_and_log_probabilities() -> None:
    found = trie([PROMPT, REPLY, SEEN, LAST]).whole_text("n", "Qab doc c")
    assert found is not None
    assert found.ids() == [1, 2, 3, 4, 5, 6, 7]
    assert found.mask() == [0, 0, 1, 1, 1, 0, 1]
    assert found.log_probs() == [0.0, 0.0, -0.1, -0.2, -0.3, 0.0, -0.4]
    assert found.mask().index(1) == 2


def test_one_sampled_piece_without_log_probabilities_leaves_the_path_without_any() -> None:
    found = trie([PROMPT, piece("ab", [3], sampled=True), SEEN, LAST]).whole_text("n", "Qab doc c")
    assert found is not None and found.log_probs() is None


@pytest.mark.parametrize("text", ["", "Qa", "Qab doc", "Qab doc c!", "ab"])
def test_half_a_piece_or_more_than_the_path_is_not_found(text: str) -> None:
    assert trie([PROMPT, REPLY, SEEN, LAST]).whole_text("n", text) is None


def test_a_path_may_end_at_any_of_its_pieces() -> None:
    found = trie([PROMPT, REPLY, SEEN, LAST]).whole_text("n", "Qab")
    assert found is not None and found.ids() == [1, 2, 3, 4, 5]


def test_the_longest_beginning_ends_in_a_sampled_piece() -> None:
    store = trie([PROMPT, REPLY, SEEN, LAST])
    assert store.longest("n", "Qab doc c and more").pieces == (PROMPT, REPLY, SEEN, LAST)
    assert store.longest("n", "Qab doc d").pieces == (PROMPT, REPLY)
    assert store.longest("n", "Qabc").pieces == (PROMPT, REPLY)
    assert store.longest("n", "Qa") == store.longest("n", "") == Path()
    assert store.longest("n", [1, 2, 3, 4, 5, 6, 8]).pieces == (PROMPT, REPLY)
    assert store.longest("n", [1, 2, 3, 4]) == Path()


def test_a_longer_match_wins_over_a_longer_first_piece() -> None:
    short = [piece("Q", [1]), piece("a", [2], sampled=True), piece("bc", [3]), piece("d", [4], sampled=True)]
    long = [piece("Qa", [9]), piece("b", [8], sampled=True)]
    assert trie(short, long).longest("n", "Qabcd").ids() == [1, 2, 3, 4]


def test_namespaces_know_nothing_of_each_other() -> None:
    store = trie([PROMPT, REPLY])
    store.add("m", [PROMPT, piece("ab", [9], sampled=True)])
    assert store.longest("n", "Qab!").ids() == [1, 2, 3, 4, 5]
    assert store.longest("m", "Qab!").ids() == [1, 2, 9]
    assert store.longest("", "Qab!") == Path()
    assert store.trajectories == 2


def test_the_same_text_in_other_ids_is_a_sibling_and_the_newest_is_found() -> None:
    other = piece("ab", [9], sampled=True)
    store = trie([PROMPT, REPLY, SEEN, LAST], [PROMPT, other])
    assert store.longest("n", "Qab").ids() == [1, 2, 9]
    found = store.whole_text("n", "Qab doc c")
    assert found is not None and found.ids() == [1, 2, 3, 4, 5, 6, 7]  # the older one's own continuation
    store.add("n", [PROMPT, REPLY])
    assert store.longest("n", "Qab").ids() == [1, 2, 3, 4, 5]


def test_a_reply_without_text_is_part_of_what_follows_it() -> None:
    silent = piece("", [0], sampled=True)
    store = trie([PROMPT, silent])
    assert store.longest("n", "Q doc").ids() == [1, 2, 0]
    assert store.longest("n", [1, 2, 0, 6]).ids() == [1, 2, 0]


def test_sampled_and_read_pieces_are_kept_separate() -> None:
    store = trie([PROMPT, REPLY], [PROMPT, piece("ab", [3, 4, 5]), LAST])
    assert store.longest("n", "Qab").mask() == [0, 0, 1, 1, 1]
    assert store.longest("n", "Qabc").mask() == [0, 0, 0, 0, 0, 1]


def test_shared_beginnings_are_stored_once_and_log_probabilities_are_the_last_ones() -> None:
    again = piece("ab", [3, 4, 5], sampled=True, log_probs=[-1.0, -2.0, -3.0])
    store = trie([PROMPT, REPLY], [PROMPT, REPLY, SEEN, LAST], [PROMPT, again])
    assert store.tokens == 7
    found = store.whole_text("n", "Qab")
    assert found is not None and found.log_probs() == [0.0, 0.0, -1.0, -2.0, -3.0]


def test_a_key_finds_the_path_it_was_stored_with_last() -> None:
    store = TokenTrie(1000, piece_tokens=0)
    store.add("n", [PROMPT, REPLY], "key")
    assert store.by_key("key") == Path((PROMPT, REPLY)) and store.by_key("other") is None
    store.add("n", [PROMPT, LAST], "key")
    assert store.by_key("key") == Path((PROMPT, LAST))


def test_every_sampled_piece_keeps_the_version_of_its_weights() -> None:
    old, new = Piece("a", array("i", [1]), True, None, "3"), Piece("b", array("i", [2]), True, None, "4")
    found = trie([PROMPT, old, new]).whole_text("n", "Qab")
    assert found is not None and [one.weight_version for one in found.pieces] == [None, "3", "4"]


def test_ids_and_log_probabilities_of_different_lengths_are_no_piece() -> None:
    with pytest.raises(ValueError, match="2 ids with 1 log-prob"):
        piece("ab", [1, 2], sampled=True, log_probs=[-0.1])


# --- what is forgotten


def test_the_least_recently_used_path_is_dropped_from_its_end() -> None:
    store = TokenTrie(10, piece_tokens=0)
    store.add("a", [piece("Q", [1, 2]), piece("x", [3, 4], sampled=True)], "a")
    store.add("b", [piece("Q", [1, 2]), piece("y", [5, 6], sampled=True)], "b")
    assert store.by_key("a") is not None  # used: now "b" is the oldest
    store.add("c", [piece("Q", [1, 2, 3]), piece("z", [7], sampled=True)], "c")
    assert store.tokens == 10
    assert store.by_key("b") is None and store.whole_text("b", "Qy") is None
    assert store.whole_text("b", "Q") is not None  # its beginning is still there, and still whole
    assert store.by_key("a") is not None and store.by_key("c") is not None


def test_a_path_larger_than_the_store_leaves_only_its_beginning() -> None:
    store = TokenTrie(4, piece_tokens=0)
    store.add("n", [PROMPT, REPLY], "key")
    assert store.tokens == 2 and store.by_key("key") is None and store.whole_text("n", "Qab") is None
    store.add("m", [piece("Z", [1, 2, 3, 4, 5])])
    assert (store.tokens, store.trajectories) == (0, 0)


def test_a_dropped_path_is_not_found_by_ids_either() -> None:
    store = TokenTrie(8, piece_tokens=0)
    store.add("n", [PROMPT, REPLY])
    store.add("n", [PROMPT, piece("xyz", [8, 8, 8, 8], sampled=True)])
    assert store.longest("n", [1, 2, 3, 4, 5]) == Path()
    assert store.tokens == 6


def test_a_key_that_moved_is_not_lost_with_the_path_it_named_before() -> None:
    store = TokenTrie(8, piece_tokens=0)
    store.add("n", [PROMPT, REPLY], "key")
    store.add("m", [PROMPT, LAST], "key")
    assert store.tokens == 8
    store.add("m", [PROMPT, LAST, piece("!", [9])])
    assert store.whole_text("n", "Qab") is None
    assert store.by_key("key") == Path((PROMPT, LAST))


TEXTS = st.text("ab", max_size=2)
PIECES = st.builds(piece, TEXTS, st.lists(st.integers(0, 1), min_size=1, max_size=3), sampled=st.booleans())
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"), st.sampled_from("mn"), st.lists(PIECES, max_size=4), st.sampled_from(["k", "l", None])
        ),
        st.tuples(st.just("text"), st.sampled_from("mn"), st.text("ab", max_size=6)),
        st.tuples(st.just("ids"), st.sampled_from("mn"), st.lists(st.integers(0, 1), max_size=8)),
        st.tuples(st.just("whole"), st.sampled_from("mn"), st.text("ab", max_size=6)),
        st.tuples(st.just("key"), st.sampled_from("kl")),
    ),
    max_size=30,
)


@dataclass
class NaiveStore:
    """The same store as a list of paths that is searched from end to end."""

    max_tokens: int
    paths: dict[tuple, list] = field(default_factory=dict)  # (namespace, pieces…) -> [used, stored]
    keys: dict[str, tuple] = field(default_factory=dict)
    clock: int = 0

    def add(self, namespace: str, pieces: list[Piece], key: str | None) -> None:
        path = (namespace, *((one.text, tuple(one.ids), one.sampled) for one in pieces))
        for end in range(2, len(path) + 1):
            self.clock += 1
            self.paths[path[:end]] = [0, self.clock]
        if key and pieces:
            self.keys[key] = path
        self.use(path)
        while sum(len(one[-1][1]) for one in self.paths) > self.max_tokens:
            oldest = min(self.paths, key=lambda one: (self.paths[one][0], -len(one)))
            del self.paths[oldest]
            self.keys = {name: end for name, end in self.keys.items() if end != oldest}

    def use(self, path: tuple | None) -> tuple[list[int], list[int]] | None:
        """The path's ids and mask."""
        if path is None:
            return None
        self.clock += 1
        for end in range(2, len(path) + 1):
            self.paths[path[:end]][0] = self.clock
        return [token for one in path[1:] for token in one[1]], [int(one[2]) for one in path[1:] for _ in one[1]]

    def longest(self, namespace: str, whole: str | list[int], part: int) -> tuple[list[int], list[int]]:
        """`part` of a piece: 0 its text, 1 its ids."""
        best: tuple = (-1, -1, None)
        for path, (_, stored) in self.paths.items():
            spelled = "".join(one[0] for one in path[1:]) if part == 0 else [i for one in path[1:] for i in one[1]]
            if path[0] == namespace and path[-1][2] and whole[: len(spelled)] == spelled:
                best = max(best, (len(spelled), stored, path))
        return self.use(best[2]) or ([], [])

    def whole(self, namespace: str, text: str) -> tuple[list[int], list[int]] | None:
        ends = [path for path in self.paths if path[0] == namespace and "".join(one[0] for one in path[1:]) == text]
        return self.use(max(ends, key=lambda path: self.paths[path][1], default=None))


def ids_and_mask(path: Path) -> tuple[list[int], list[int]]:
    return path.ids(), path.mask()


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 12), OPERATIONS)
def test_any_sequence_of_operations_gives_what_a_naive_store_gives(bound: int, operations: list[tuple]) -> None:
    store, naive = TokenTrie(bound, piece_tokens=0), NaiveStore(bound)
    for name, *arguments in operations:
        if name == "add":
            store.add(*arguments)
            naive.add(*arguments)
        elif name == "text":
            assert ids_and_mask(store.longest(*arguments)) == naive.longest(*arguments, 0)
        elif name == "ids":
            assert ids_and_mask(store.longest(*arguments)) == naive.longest(*arguments, 1)
        else:
            found = store.whole_text(*arguments) if name == "whole" else store.by_key(*arguments)
            expected = naive.whole(*arguments) if name == "whole" else naive.use(naive.keys.get(*arguments))
            assert (found and ids_and_mask(found)) == expected
        assert store.tokens == sum(len(path[-1][1]) for path in naive.paths) <= bound
        assert store.trajectories == len({path[0] for path in naive.paths})


def test_memory_stays_within_20_bytes_per_counted_token_even_for_short_trajectories() -> None:
    store = TokenTrie(100_000)
    tracemalloc.start()
    for number in range(2000):  # more than it holds
        reply = Piece("a", array("i", [2]), True, array("d", [-0.1]), "7")
        store.add(f"namespace {number}", [Piece("Q", array("i", [1])), reply], f"key {number}")
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert store.trajectories < 2000 and used < 20 * store.max_tokens


# --- how fast


@pytest.mark.parametrize("shared", [False, True], ids=["a-namespace-each", "one-namespace"])
def test_a_look_up_among_ten_thousand_trajectories_takes_far_less_than_a_millisecond(shared: bool) -> None:
    rng = random.Random(0)
    store, texts = TokenTrie(10**8), []
    question_ids, reply_ids, seen_ids = (array("i", range(length)) for length in (200, 120, 400))
    for number in range(10_000):
        question = "Answer the question. " * 40 + "".join(rng.choices("abcdefgh ", k=rng.randint(20, 200)))
        turns = [Piece(question, question_ids)]
        for turn in range(2):
            turns += [Piece(f"think {number} {turn}" * 30, reply_ids, True), Piece(" document" * 200, seen_ids)]
        store.add("" if shared else str(number), turns)
        texts.append("".join(one.text for one in turns) + " and so on")
    times = []
    for number in rng.sample(range(10_000), 1000):
        start = time.thread_time()  # what others do on this machine does not count
        found = store.longest("" if shared else str(number), texts[number])
        times.append(time.thread_time() - start)
        assert len(found.pieces) == 4
    assert sorted(times)[990] < 1e-3
