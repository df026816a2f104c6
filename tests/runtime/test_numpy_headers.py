"""Headers of NumPy's files are parsed by one thread at a time: CPython 3.11 fails where two build trees at once."""

from __future__ import annotations

import ast
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from milnce.feature_files import read_npz
from milnce.vectors import read_vector

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _npz(folder: Path) -> Callable[[], object]:
    path = folder / "features.npz"
    columns: dict[str, Any] = {
        "path": np.array(["a.mp4"]),
        "start_s": np.zeros(1),
        "end_s": np.ones(1),
        "embedding": np.zeros((1, 4), np.float32),
        "mixed_5c": np.zeros((1, 8), np.float32),
        "metadata": np.array("{}"),
    }
    np.savez(path, **columns)
    return lambda: read_npz(path)


def _npy(folder: Path) -> Callable[[], object]:
    path = folder / "vector.npy"
    np.save(path, np.ones(4, np.float32))
    return lambda: read_vector(path, 4)


@pytest.mark.parametrize("pair", [(_npz, _npz), (_npy, _npy), (_npz, _npy)])
def test_two_threads_never_parse_headers_at_the_same_time(
    pair: tuple[Callable[[Path], Callable[[], object]], ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, parse = Barrier(2), ast.literal_eval
    met, parsed = [], []

    def watched(text: str) -> object:
        parsed.append(text)
        try:
            both.wait(0.5)  # two that may be here at once meet; one alone waits in vain, the first time only
        except BrokenBarrierError:
            return parse(text)
        met.append(text)
        return parse(text)

    reads = [make(tmp_path) for make in pair]
    monkeypatch.setattr(ast, "literal_eval", watched)
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(read) for read in reads]:
            done.result()
    assert len(parsed) == sum(6 if make is _npz else 1 for make in pair)
    assert met == []
