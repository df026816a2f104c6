"""Sentences to ids, by the reference's rules."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milnce.errors import InputError, UnknownWordsWarning
from milnce.tokenizer import Tokenizer

WORDS = ["cut", "tomato", "don't", "a", "öffnen", "x_1"]


def test_ids_are_index_plus_one_and_zero_pads() -> None:
    ids = Tokenizer(WORDS, max_words=5)(["Cut a TOMATO!", "don't"])
    assert ids.dtype == np.int64
    assert ids.tolist() == [[1, 4, 2, 0, 0], [3, 0, 0, 0, 0]]


def test_unknown_words_are_dropped_before_the_cut() -> None:
    # The reference filters first, so an unknown word takes no place among the first max_words.
    assert Tokenizer(WORDS, max_words=2)("the red cut of a tomato").tolist() == [[1, 4]]


def test_words_are_unicode_runs_with_apostrophes_and_underscores() -> None:
    assert Tokenizer(WORDS, max_words=4)("ÖFFNEN,don't;x_1").tolist() == [[5, 3, 6, 0]]


def test_case_is_lowered_and_not_folded() -> None:
    # str.casefold, which looks like the better str.lower, makes another word of it: "strasse".
    assert Tokenizer(["straße"], max_words=1)(["Straße", "straße"]).tolist() == [[1], [1]]


def test_max_words_of_the_call_wins() -> None:
    tokenizer = Tokenizer(WORDS)
    assert tokenizer("cut").shape == (1, 16)
    assert tokenizer("cut", max_words=20).shape == (1, 20)


def test_the_later_of_two_equal_words_wins() -> None:
    tokenizer = Tokenizer(["cut", "a", "cut"], max_words=2)
    assert tokenizer("cut a").tolist() == [[3, 2]]
    assert len(tokenizer) == 2


def test_unknown_lists_dropped_words_in_order() -> None:
    assert Tokenizer(WORDS).unknown("Slice the tomato, the red one") == ["slice", "the", "the", "red", "one"]


def test_a_sentence_without_known_words_warns_once_by_name() -> None:
    tokenizer = Tokenizer(WORDS, max_words=3)
    with pytest.warns(UnknownWordsWarning, match=re.escape("no word of 'Slice it' is in the vocabulary of 6 words")):
        assert tokenizer(["Slice it", "Slice it", "cut"]).tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer("Slice it")
    with pytest.warns(UnknownWordsWarning, match="it has no words at all"):
        tokenizer("?!")


def test_the_memory_of_warnings_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milnce.tokenizer._REMEMBERED_WARNINGS", 3)
    tokenizer = Tokenizer(WORDS, max_words=3)
    with pytest.warns(UnknownWordsWarning) as caught:
        tokenizer(["one", "two", "three", "one", "four", "four", "one"])
    texts = [str(warning.message).split("'")[1] for warning in caught]
    assert texts == ["one", "two", "three", "four", "one"]


def test_python_keeps_no_text_of_the_warnings() -> None:
    tokenizer = Tokenizer(WORDS, max_words=3)
    kept = globals().setdefault("__warningregistry__", {})
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        before = len(kept)
        for number in range(50):
            tokenizer(f"nothing{number}")
    assert len(shown) == 50
    assert {warning.filename for warning in shown} == {__file__}, "the caller's line is named"
    assert len(kept) - before <= 1  # the note of which filters they were made under


def test_warnings_can_be_left_out() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Tokenizer(WORDS, max_words=3)("nothing", warn=False).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("sentences", "text"),
    [
        ([], "no sentences given; at least one"),
        (["cut", None], "sentence 1 is None of type NoneType; text"),
        ([float("nan")], "sentence 0 is nan of type float"),
        ([b"cut"], "sentence 0 is b'cut' of type bytes"),
        (b"cut", "sentences given as bytes"),
        (7, "sentences given as int; a str or a sequence"),
    ],
)
def test_what_is_no_text_is_refused(sentences: object, text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        Tokenizer(WORDS)(sentences)  # type: ignore[arg-type] # wrong on purpose


def test_a_table_column_of_text_is_a_sequence() -> None:
    assert Tokenizer(WORDS, max_words=1)(np.array(["cut", "tomato"])).tolist() == [[1], [2]]  # type: ignore[arg-type] # not a Sequence by type


@pytest.mark.parametrize("max_words", [0, -1, 1.5, True, "16", None])
def test_max_words_must_be_a_positive_whole_number(max_words: object) -> None:
    with pytest.raises(InputError, match=r"max_words is .*; a whole number of at least 1 expected"):
        Tokenizer(WORDS, max_words=max_words)  # type: ignore[arg-type] # wrong on purpose


@pytest.mark.parametrize("words", [[], "cut"])
def test_an_empty_vocabulary_is_refused(words: object) -> None:
    with pytest.raises(InputError, match="at least one word"):
        Tokenizer(words)  # type: ignore[arg-type] # wrong on purpose


@given(st.text())
def test_any_text_encodes_as_the_reference_does(sentence: str) -> None:
    table = {word: index + 1 for index, word in enumerate(WORDS)}
    known = [table[word] for word in re.findall(r"[\w']+", str(sentence.lower())) if word in table][:4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownWordsWarning)
        row = Tokenizer(WORDS, max_words=4)(sentence)[0].tolist()
    assert row == known + [0] * (4 - len(known))
