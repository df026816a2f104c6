"""Word lists: what is read, and what is refused and how."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest

from helpers.payload import Payload
from milnce.errors import CheckpointError
from milnce_convert.checkpoint import read_vocabulary

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ("open", "the", "door", "naïve", "don't")


def _vocabulary_refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_vocabulary(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_vocabularies_read(tmp_path: Path) -> None:
    path = tmp_path / "dict.npy"
    np.save(path, np.array(WORDS))
    assert read_vocabulary(path) == WORDS
    np.save(path, np.array([word.encode() for word in WORDS]))
    assert read_vocabulary(path) == WORDS
    text = tmp_path / "dict.txt"
    text.write_bytes("\r\n".join(WORDS).encode())
    assert read_vocabulary(text) == WORDS


def test_a_text_vocabulary_is_split_at_line_ends_only(tmp_path: Path) -> None:
    """A row too many would shift every later word's id, so no other separator of Unicode may count."""
    path = tmp_path / "dict.txt"
    path.write_bytes("one\nt\u2028wo\nth\x85ree\n".encode())
    assert read_vocabulary(path) == ("one", "t\u2028wo", "th\x85ree")
    path.write_bytes("\ufeffone\ntwo\n".encode())
    assert read_vocabulary(path) == ("one", "two"), "an editor's byte order mark is no part of the first word"


def test_vocabularies_that_need_pickle_are_refused(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "dict.npy"
    np.save(path, np.array([Payload(canary), "word"], dtype=object), allow_pickle=True)
    assert "would need pickle, which can run code. Re-save it: np.save(" in _vocabulary_refusal(path)
    path.write_bytes(pickle.dumps(Payload(canary)))
    assert "would need pickle" in _vocabulary_refusal(path)
    assert not canary.exists()


def test_a_header_that_promises_too_much_is_refused_without_allocating(tmp_path: Path) -> None:
    path = tmp_path / "dict.npy"
    with path.open("wb") as file:
        header = {"descr": "<U20", "fortran_order": False, "shape": (10**12,)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(b"\0" * 800)
    assert "is truncated or is no .npy file" in _vocabulary_refusal(path)


def test_other_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "dict.npy"
    for array, found in (
        (np.arange(5), "int64 (5,)"),
        (np.array([["a", "b"]]), "<U1 (1, 2)"),
        (np.array("a"), "<U1 ()"),
        (np.array([], dtype="<U4"), "<U4 (0,)"),
    ):
        np.save(path, array)
        text = _vocabulary_refusal(path)
        assert f"holds {found}; a one-dimensional array of strings is expected" in text
    with path.open("wb") as file:
        np.savez(file, words=np.array(WORDS))
    assert "a one-dimensional array of strings is expected" in _vocabulary_refusal(path)


def test_a_truncated_array_is_refused_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "dict.npy"
    np.save(path, np.array(WORDS))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        _vocabulary_refusal(path)


def test_vocabulary_files_that_are_no_files_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.npy"
    assert _vocabulary_refusal(missing) == f"vocabulary file {missing} does not exist"
    assert _vocabulary_refusal(tmp_path) == f"vocabulary file {tmp_path} is not a file"
    missing.touch()
    assert _vocabulary_refusal(missing) == f"vocabulary file {missing} is empty (0 bytes); fetch it again"


def test_words_that_are_not_text_or_not_lines_are_refused(tmp_path: Path) -> None:
    path, text = tmp_path / "dict.npy", tmp_path / "dict.txt"
    np.save(path, np.array(["fine", "br\noken"]))
    assert "words must not hold line breaks; entries 1: 'br\\noken'" in _vocabulary_refusal(path)
    np.save(path, np.array([b"fine", b"\xff\xfe"]))
    assert "is not UTF-8 text" in _vocabulary_refusal(path)
    text.write_bytes(b"fine\n\xff\xfe\n")
    assert "is not UTF-8 text" in _vocabulary_refusal(text)
