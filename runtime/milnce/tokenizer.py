"""Sentences to word ids, by the rules of the reference implementation of MIL-NCE."""

from __future__ import annotations

import re
import sys
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.arguments import positive
from milnce.errors import InputError, UnknownWordsWarning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# A word is a run of Unicode letters, digits, underscores and apostrophes, as in the reference's `re.findall`.
_WORD = re.compile(r"[\w']+")
# Sentences that are remembered as warned about, so that a service's memory does not grow for ever.
_REMEMBERED_WARNINGS = 1000


class Tokenizer:
    r"""Turns sentences into rows of word ids for the text tower.

    A sentence is put in lower case and split into words by the pattern ``[\w']+``. Words that are not in the
    vocabulary are dropped first; what is left is then cut, or padded with zeros at the end, to `max_words`. This is
    the order of the reference (antoine77340/S3D_HowTo100M, `s3dg.py`), so an unknown word takes no place.

    Args:
        words: The vocabulary in order. The id of a word is its index + 1; id 0 is padding. Where a word occurs
            twice the later index wins, as in the reference's dictionary.
        max_words: Ids in a row unless the call says otherwise. 16 in the official model.

    Raises:
        InputError: if `words` is empty or `max_words` is not a positive integer.
    """

    def __init__(self, words: Sequence[str], max_words: int = 16) -> None:
        if isinstance(words, str) or len(words) == 0:
            raise InputError("a tokenizer needs a list with at least one word")
        self.max_words = positive("max_words", max_words)
        self._ids = {word: index for index, word in enumerate(words, start=1)}
        self._warned: set[str] = set()

    def __len__(self) -> int:
        """Return the number of different words."""
        return len(self._ids)

    def __contains__(self, word: object) -> bool:
        return word in self._ids

    def __repr__(self) -> str:
        return f"Tokenizer({len(self)} words, max_words={self.max_words})"

    def __call__(
        self, sentences: Sequence[str] | str, *, max_words: int | None = None, warn: bool = True
    ) -> NDArray[np.int64]:
        """Encode sentences.

        Args:
            sentences: One sentence, or a sequence of N sentences. One string counts as N = 1.
            max_words: Ids in a row; the tokenizer's own `max_words` if None.
            warn: Whether to warn of sentences with no known word.

        Returns:
            int64 (N, max_words), each row a sentence's word ids, padded with 0 at the end.

        Raises:
            InputError: if there is no sentence, or one is not text.

        Warns:
            UnknownWordsWarning: for a sentence with no known word (all its ids are 0), once for each such
                sentence (again after a thousand others).
        """
        width = self.max_words if max_words is None else positive("max_words", max_words)
        rows = as_sentences(sentences)
        ids = np.zeros((len(rows), width), dtype=np.int64)
        # All at once into the array: a row at a time took longer than finding the words.
        get, counts = self._ids.get, []
        flat: list[int] = []
        for sentence in rows:
            known = [number for number in map(get, _split(sentence)) if number is not None]
            if warn and not known:
                self._warn_unknown(sentence)
            counts.append(len(known))
            flat += known[:width]
        ids[np.arange(width) < np.array(counts)[:, None]] = flat
        return ids

    def unknown(self, sentence: str) -> list[str]:
        """Return the words of `sentence` that are not in the vocabulary and so are dropped, in order."""
        return [word for word in _split(sentence) if word not in self._ids]

    def _warn_unknown(self, sentence: str) -> None:
        if sentence in self._warned:
            return
        if len(self._warned) >= _REMEMBERED_WARNINGS:
            self._warned.clear()
        self._warned.add(sentence)
        words = ", ".join(map(repr, _split(sentence))) or "it has no words at all"
        caller = sys._getframe(2)  # noqa: SLF001 - as `warnings.warn` finds who is to blame
        # Python keeps the text of every warning it has shown, for good, in a registry: this one is thrown away.
        warnings.warn_explicit(
            f"no word of {sentence!r} is in the vocabulary of {len(self)} words ({words}); "
            "it is encoded as padding only, so its scores mean nothing",
            UnknownWordsWarning,
            caller.f_code.co_filename,
            caller.f_lineno,
            registry={},
        )


def as_sentences(sentences: Sequence[str] | str) -> list[str]:
    """Return `sentences` as a list with at least one string; one string becomes a list of one.

    Raises:
        InputError: if there is none, or one is not text (None and NaN of a table would become the words
            "none" and "nan", so nothing is turned into text here).
    """
    rows: list[Any] = [sentences] if isinstance(sentences, str) else list(_iterable(sentences))
    if not rows:
        raise InputError("no sentences given; at least one is needed")
    for index, row in enumerate(rows):
        if not isinstance(row, str):
            raise InputError(f"sentence {index} is {row!r} of type {type(row).__name__}; text (str) expected")
    return rows


def _iterable(sentences: Any) -> Any:  # noqa: ANN401 - anything a caller may pass; what is no sequence is refused
    if isinstance(sentences, bytes | bytearray) or not hasattr(sentences, "__iter__"):
        raise InputError(f"sentences given as {type(sentences).__name__}; a str or a sequence of str expected")
    return sentences


def _split(sentence: str) -> list[str]:
    return _WORD.findall(sentence.lower())
