"""The text tower in NumPy alone: what a sentence costs without a backend.

The tower is a table of word vectors, a linear layer, ReLU, the maximum over a sentence's words and another linear layer
(`Sentence_Embedding` in antoine77340/S3D_HowTo100M, `s3dg.py`). Three things make it cheap here, and none changes a
number: the first layer runs once for each different word of a batch and not once for each word, as it knows nothing of
the sentence; bias and ReLU come after the maximum, which they do not change since both only ever keep the order; and of
the padding of a sentence one place counts as much as all.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Float32Array = NDArray[np.float32]

# Ids that are worked on at once, 16,384 sentences of 16 words: what bounds the memory (some 150 MB with the official
# model). More would find few more words twice.
_IDS_AT_ONCE = 2**18
# Hidden values of the different words that are worked on at once: all columns where they fit into this, else so many
# columns as keep a row a few cache lines long, since rows are read in the order of the sentences.
_HIDDEN_AT_ONCE = 2**21
_COLUMNS_AT_ONCE = 256
# Hidden values of the sentences that are put together at once: they stay in the second-level cache (256 kB).
_SENTENCE_VALUES_AT_ONCE = 2**16
# Rows of the second product that need room of their own before they are added.
_ROWS_OF_A_PRODUCT = 4096
# Sentences from which on several threads look for the maximum; fewer are done before the threads have begun.
_WORTH_THREADS = 2048


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A linear layer: x @ weight + bias.

    Attributes:
        weight: float32 (inputs, outputs).
        bias: float32 (outputs,).
    """

    weight: Float32Array
    bias: Float32Array

    def aligned(self) -> Linear:
        """Return it in memory that BLAS can use; it would copy other memory in every call."""
        return Linear(_aligned(self.weight), _aligned(self.bias))


@dataclass(frozen=True, slots=True, eq=False)
class TextWeights:
    """The weights of a text tower.

    Attributes:
        table: float32 (words + 1, width): a vector a word; row 0 is the padding's.
        first: From a word's vector to its hidden values.
        last: From a sentence's hidden values to its embedding.
    """

    table: Float32Array
    first: Linear
    last: Linear


class TextTower:
    """Sentences as word ids in, embeddings out. May be called from several threads at once.

    Equal sentences get equal embeddings to some 1e-7 of the largest value, and not always to the last bit: which
    kernel a BLAS library takes, and so in which order it adds, depends on how many rows there are. The same batch gives
    the same bits on one machine, with one number of BLAS threads.

    Matrix products run in as many threads as the BLAS library behind NumPy takes, which nothing in NumPy can change:
    set OPENBLAS_NUM_THREADS (or MKL_NUM_THREADS) before Python starts, or use the package threadpoolctl.

    Args:
        weights: The tower's. The table may be a view into a file's bytes; only the rows that are asked for are read.
        threads: Threads that look for the maximum in large batches; None for every core of this process.
    """

    def __init__(self, weights: TextWeights, *, threads: int | None = None) -> None:
        table = np.ascontiguousarray(weights.table)
        self._rows, self._dtype = len(table), table.dtype
        # As bytes: a view into a file need not be aligned, and NumPy would copy all of such a table to index it.
        self._table = table.view(np.uint8)
        self._first, self._last = weights.first.aligned(), weights.last.aligned()
        self._threads = threads or len(os.sched_getaffinity(0))

    @property
    def embedding(self) -> int:
        """Width of an embedding: 512 in the official model."""
        return len(self._last.bias)

    def __call__(self, tokens: NDArray[np.int64]) -> Float32Array:
        """Embed N sentences.

        Args:
            tokens: int64 (N, words), as the tokenizer gives them: 0 is padding, which counts like a word.

        Returns:
            float32 (N, embedding), not normalised.

        Raises:
            InputError: if it is another kind of array, has no word, or an id is negative or beyond the table.
        """
        if tokens.dtype.name != "int64" or tokens.ndim != 2 or tokens.shape[1] == 0:  # noqa: PLR2004 - a matrix
            raise InputError(
                f"tokens: {tokens.dtype.name} of shape {tokens.shape} given; int64 (N, words) expected, with words >= 1"
            )
        result = np.empty((len(tokens), self.embedding), np.float32)
        if len(tokens) == 0:
            return result
        lowest, highest = int(tokens.min()), int(tokens.max())
        if lowest < 0 or highest >= self._rows:
            raise InputError(
                f"tokens: id {lowest if lowest < 0 else highest} given; ids are 0 (padding) to {self._rows - 1}, as "
                "the tokenizer gives them"
            )
        step = max(1, _IDS_AT_ONCE // tokens.shape[1])
        for start in range(0, len(tokens), step):
            self._encode(tokens[start : start + step], result[start : start + step])
        return result

    def _encode(self, tokens: NDArray[np.int64], result: Float32Array) -> None:
        """Embed sentences that fit into memory at once."""
        batch = _Batch(tokens, self._rows)
        vectors = self._table.take(batch.words, axis=0).view(self._dtype).astype(np.float32, copy=False)
        hidden = len(self._first.bias)
        step = hidden if len(vectors) * hidden <= _HIDDEN_AT_ONCE else _COLUMNS_AT_ONCE
        room_of_words = np.empty(len(vectors) * step, np.float32)
        room_of_sentences = np.empty(len(tokens) * step, np.float32)
        embedding = np.empty_like(result)
        embedding[:] = self._last.bias
        for columns in _slices(hidden, step):
            width = columns.stop - columns.start
            words = room_of_words[: len(vectors) * width].reshape(-1, width)
            sentences = room_of_sentences[: len(tokens) * width].reshape(-1, width)
            np.matmul(vectors, self._first.weight[:, columns], out=words)
            batch.maximum(words, self._first.bias[columns], sentences, threads=self._threads)
            for rows in _slices(len(sentences), _ROWS_OF_A_PRODUCT):
                embedding[rows] += sentences[rows] @ self._last.weight[columns]
        result[batch.order] = embedding


class _Batch:
    """The words of sentences, each once, and the sentences, those with the most words first.

    Attributes:
        words: The different ids, ascending.
        order: For each sentence in this order, which of the caller's it is.
    """

    def __init__(self, tokens: NDArray[np.int64], rows: int) -> None:
        there = np.zeros(rows, np.bool_)
        there[tokens] = True
        self.words = np.flatnonzero(there)
        place = np.empty(rows, np.intp)
        place[self.words] = np.arange(len(self.words))
        known = np.count_nonzero(tokens, axis=1)
        self.order = np.argsort(-known, kind="stable")
        # The maximum does not care for the order of words, so padding goes to the end, where one of it is enough.
        ids = np.sort(tokens[self.order], axis=1)[:, ::-1]
        self._places = np.ascontiguousarray(place[ids].T)
        self._counts = np.minimum(known[self.order] + 1, tokens.shape[1])

    def maximum(self, words: Float32Array, bias: Float32Array, out: Float32Array, *, threads: int) -> None:
        """Write each sentence's hidden values, the maximum over its words, to `out`.

        Args:
            words: float32 (words, columns): each word's values before bias and ReLU.
            bias: float32 (columns,).
            out: float32 (sentences, columns).
            threads: Threads to share the sentences.
        """
        tiles = [*_slices(len(out), max(1, _SENTENCE_VALUES_AT_ONCE // len(bias)))]
        shares = [tiles[index::threads] for index in range(threads)] if len(out) >= _WORTH_THREADS else [tiles]
        if len(shares) == 1:
            self._maximum(words, bias, out, tiles)
            return
        with ThreadPoolExecutor(len(shares)) as pool:
            # As a list, so that an error of a thread is raised here.
            list(pool.map(lambda share: self._maximum(words, bias, out, share), shares))

    def _maximum(self, words: Float32Array, bias: Float32Array, out: Float32Array, tiles: Iterable[slice]) -> None:
        # mode="clip": without a look at the places, which are right, NumPy needs no copy of what it writes to `out`.
        for rows in tiles:
            tile = out[rows]
            places = self._places[: self._counts[rows.start], rows]
            best = np.take(words, places[0], axis=0, mode="clip")
            one = np.empty_like(best)
            for others in places[1:]:
                np.take(words, others, axis=0, out=one, mode="clip")
                np.maximum(best, one, out=best)
            best += bias
            np.maximum(best, 0, out=tile)


def _slices(count: int, step: int) -> Iterable[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _aligned(array: NDArray[Any]) -> Float32Array:
    """Return the array in this machine's float32, aligned; a view of a transposed array stays one."""
    if array.flags.aligned and array.dtype == np.float32 and array.dtype.isnative:
        return array
    return array.astype(np.float32, order="K", copy=True)
