"""The text tower in NumPy: its numbers, whatever the batch, its refusals, and what it costs in memory."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milnce import text_tower
from milnce.errors import InputError
from milnce.text_tower import Linear, TextTower, TextWeights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Tokens = NDArray[np.int64]
    Doubles = NDArray[np.float64]

# Of the largest value. The tower adds some hundred products in float32, the expected values in float64.
TOLERANCE = 1e-6


def weights_of(rows: int = 50, width: int = 12, hidden: int = 40, embedding: int = 9, seed: int = 0) -> TextWeights:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32)

    first, last = Linear(draw(width, hidden), draw(hidden)), Linear(draw(hidden, embedding), draw(embedding))
    return TextWeights(draw(rows, width), first, last)


def expected(weights: TextWeights, tokens: Tokens) -> Doubles:
    """Return what the tower is by definition, word by word, in float64."""
    hidden = weights.table.astype(np.float64)[tokens] @ weights.first.weight.astype(np.float64) + weights.first.bias
    found = np.maximum(hidden, 0).max(axis=1) @ weights.last.weight.astype(np.float64) + weights.last.bias
    return np.asarray(found)


def assert_same(found: NDArray[np.float32], right: Doubles, tolerance: float = TOLERANCE) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, right, rtol=0, atol=tolerance * np.abs(right).max())


WEIGHTS = weights_of()
TOWER = TextTower(WEIGHTS)


@settings(deadline=None, max_examples=150)
@given(
    count=st.integers(1, 40),
    words=st.integers(1, 30),
    known=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_batch_gives_the_towers_numbers(count: int, words: int, known: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 50, (count, words)) * (rng.random((count, words)) < known)
    assert_same(TOWER(tokens), expected(WEIGHTS, tokens))


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 257, 5000])
@pytest.mark.parametrize("words", [1, 7, 16, 30])
def test_batches_of_many_sizes_with_short_long_and_empty_sentences(count: int, words: int) -> None:
    rng = np.random.default_rng(count)
    lengths = rng.integers(0, words + 1, count)
    tokens = np.where(np.arange(words) < lengths[:, None], rng.integers(1, 50, (count, words)), 0)
    assert_same(TOWER(tokens), expected(WEIGHTS, tokens))


def test_sentences_of_padding_alone_are_all_the_same() -> None:
    tokens = np.zeros((300, 16), np.int64)
    found = TOWER(tokens)
    assert_same(found, expected(WEIGHTS, tokens))
    assert (found == found[0]).all()


def test_padding_counts_like_a_word() -> None:
    # The released weights were trained so: the padding's row takes part in the maximum.
    large = weights_of()
    large.table[0] = 10
    tower, tokens = TextTower(large), np.array([[3, 4, 5]])
    padded = np.array([[3, 4, 5, 0, 0]])
    assert_same(tower(padded), expected(large, padded))
    assert np.abs(tower(padded) - tower(tokens)).max() > 1


def test_padding_may_lie_anywhere_and_words_in_any_order_and_twice() -> None:
    tokens = np.array([[0, 3, 0, 7, 3], [7, 3, 0, 0, 0], [3, 7, 7, 7, 0]])
    found = TOWER(tokens)
    assert_same(found, expected(WEIGHTS, tokens))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_IDS_AT_ONCE", 64),
        ("_HIDDEN_AT_ONCE", 0),
        ("_COLUMNS_AT_ONCE", 16),
        ("_SENTENCE_VALUES_AT_ONCE", 100),
        ("_ROWS_OF_A_PRODUCT", 3),
        ("_WORTH_THREADS", 1),
    ],
)
def test_how_the_work_is_cut_changes_no_number(name: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.random.default_rng(3).integers(0, 50, (203, 9))
    monkeypatch.setattr(text_tower, "_HIDDEN_AT_ONCE", 0)
    monkeypatch.setattr(text_tower, "_COLUMNS_AT_ONCE", 24)  # 40 hidden values: 24 and 16
    monkeypatch.setattr(text_tower, name, value)
    for threads in (1, 3):
        assert_same(TextTower(WEIGHTS, threads=threads)(tokens), expected(WEIGHTS, tokens))


def test_a_batch_gives_the_same_bits_every_time_and_with_any_number_of_threads() -> None:
    tokens = np.random.default_rng(4).integers(0, 50, (4000, 16))
    first = TOWER(tokens)
    for threads in (1, 2, 5):
        np.testing.assert_array_equal(TextTower(WEIGHTS, threads=threads)(tokens), first)


def test_a_sentence_does_not_depend_on_its_batch() -> None:
    weights = weights_of(2000, 300, 512, 64)
    tower = TextTower(weights)
    tokens = np.random.default_rng(5).integers(0, 2000, (3000, 16))
    whole = tower(tokens)
    largest = np.abs(whole).max()
    for rows in (slice(0, 1), slice(7, 9), slice(100, 200), slice(2000, 3000)):
        # To some last bits: BLAS adds in another order for other sizes.
        np.testing.assert_allclose(tower(tokens[rows]), whole[rows], rtol=0, atol=1e-6 * largest)


def test_threads_share_one_tower() -> None:
    batches = [np.random.default_rng(seed).integers(0, 50, (1 + 700 * (seed % 4), 8)) for seed in range(24)]
    right = [TOWER(tokens) for tokens in batches]
    with ThreadPoolExecutor(8) as pool:
        for found, expected_rows in zip(pool.map(TOWER, batches), right, strict=True):
            np.testing.assert_array_equal(found, expected_rows)


def test_an_error_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(text_tower._Batch, "_maximum", fail)  # noqa: SLF001 - what runs in threads
    with pytest.raises(MemoryError, match="no room"):
        TextTower(WEIGHTS, threads=2)(np.zeros((3000, 4), np.int64))


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (np.array([[1, -1]]), r"tokens: id -1 given; ids are 0 \(padding\) to 49, as the tokenizer gives them"),
        (np.array([[50, 1]]), r"tokens: id 50 given; ids are 0 \(padding\) to 49"),
        (np.array([[2**40, 1]]), "tokens: id 1099511627776 given"),
        (np.array([[1, 2]], np.int32), r"tokens: int32 of shape \(1, 2\) given; int64 \(N, words\) expected"),
        (np.array([1, 2]), r"tokens: int64 of shape \(2,\) given"),
        (np.zeros((2, 0), np.int64), r"tokens: int64 of shape \(2, 0\) given; .* with words >= 1"),
        (np.array([[0.5]]), "tokens: float64"),
    ],
)
def test_what_is_no_batch_of_ids_is_refused(tokens: Tokens, text: str) -> None:
    with pytest.raises(InputError, match=text):
        TOWER(tokens)


def test_no_sentence_gives_no_row() -> None:
    assert TOWER(np.zeros((0, 16), np.int64)).shape == (0, 9)


def test_the_callers_ids_are_left_alone_and_any_layout_will_do() -> None:
    tokens = np.random.default_rng(6).integers(0, 50, (64, 12))
    kept = tokens.copy()
    right = TOWER(tokens)
    np.testing.assert_array_equal(tokens, kept)
    tokens.flags.writeable = False
    for same in (tokens, np.asfortranarray(tokens), np.repeat(tokens, 2, axis=1)[:, ::2], tokens.astype(">i8")):
        np.testing.assert_array_equal(TOWER(same), right)


def test_weights_that_lie_unaligned_in_a_file_give_the_same_and_the_table_is_not_copied() -> None:
    weights = weights_of(20_000, 25)

    def unaligned(array: NDArray[np.float32]) -> NDArray[np.float32]:
        held = np.frombuffer(b"\0" + array.tobytes(), np.uint8)
        return np.ndarray(array.shape, "<f4", buffer=held.data, offset=1)

    moved = TextWeights(
        unaligned(weights.table),
        Linear(unaligned(weights.first.weight), unaligned(weights.first.bias)),
        Linear(unaligned(weights.last.weight.T.copy()).T, unaligned(weights.last.bias)),
    )
    assert not moved.table.flags.aligned
    tokens = np.random.default_rng(7).integers(0, 20_000, (5, 16))
    tracemalloc.start()
    tower = TextTower(moved)
    found = tower(tokens)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert_same(found, expected(weights, tokens))
    assert peak < weights.table.nbytes / 4


def test_numbers_of_another_byte_order_are_read_as_what_they_are() -> None:
    swapped = TextWeights(
        WEIGHTS.table.astype(">f4"),
        Linear(WEIGHTS.first.weight.astype(">f4"), WEIGHTS.first.bias.astype(">f4")),
        Linear(WEIGHTS.last.weight.astype(">f4"), WEIGHTS.last.bias.astype(">f4")),
    )
    tokens = np.random.default_rng(8).integers(0, 50, (5, 6))
    np.testing.assert_array_equal(TextTower(swapped)(tokens), TOWER(tokens))


def test_memory_does_not_grow_with_the_number_of_sentences() -> None:
    tower = TextTower(weights_of(1000, 12, 320, 4))
    rng = np.random.default_rng(9)

    def peak(count: int) -> int:
        tokens = rng.integers(0, 1000, (count, 16))
        tracemalloc.start()
        result = tower(tokens)
        beyond = tracemalloc.get_traced_memory()[1] - result.nbytes
        tracemalloc.stop()
        return beyond

    assert peak(120_000) < 1.1 * peak(20_000)


def test_not_a_number_comes_out() -> None:
    weights = weights_of()
    weights.table[7, 3] = np.nan
    found = TextTower(weights)(np.array([[7, 1], [2, 1]]))
    assert np.isnan(found[0]).any()
    assert np.isfinite(found[1]).all()
