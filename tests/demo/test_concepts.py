"""What the demo's clips show and how it is said."""

from __future__ import annotations

from itertools import combinations as pairs

import numpy as np
import pytest

from milnce.tokenizer import Tokenizer
from milnce_convert.demo.concepts import Combination, combinations, describe, vocabulary


def test_there_are_enough_combinations_and_a_fifth_is_never_trained_on() -> None:
    everything = combinations()
    held_out = [combination for combination in everything if combination.held_out]
    assert len(set(everything)) == len(everything) == 432
    assert len(held_out) == 87
    assert len(held_out) / len(everything) >= 0.2


@pytest.mark.parametrize("places", list(pairs(range(3), 2)))
def test_every_pair_of_an_unseen_combination_is_trained_in_others(places: tuple[int, int]) -> None:
    def pair(combination: Combination) -> tuple[str, ...]:
        return tuple(combination[place] for place in places)

    trained = {pair(combination) for combination in combinations() if not combination.held_out}
    assert {pair(combination) for combination in combinations() if combination.held_out} <= trained


def test_no_caption_fits_two_combinations() -> None:
    owner: dict[frozenset[str], Combination] = {}
    generator = np.random.default_rng(0)
    for combination in combinations():
        for caption in describe(combination, generator, 12):
            # The model sees a bag of words: not even their order may tell two combinations apart.
            assert owner.setdefault(frozenset(caption.split()), combination) == combination, caption


def test_captions_are_different_known_words_within_the_models_limit() -> None:
    words = vocabulary()
    tokenizer = Tokenizer(words, 16)
    generator = np.random.default_rng(1)
    seen = set()
    for combination in combinations():
        captions = describe(combination, generator, 6)
        assert len(set(captions)) == 6
        for caption in captions:
            assert tokenizer.unknown(caption) == []
            assert len(caption.split()) <= 16
            seen |= set(caption.split())
    assert seen == set(words), "a word that no caption holds is never trained"


def test_captions_follow_the_seed() -> None:
    combination = Combination("star", "red", "left")
    first, again, other = (describe(combination, np.random.default_rng(seed), 5) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert combination.sentence == "a red star moves to the left"
