"""Scores and their ranking: exact, stable on ties, per file, in bounded memory, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.commands import environment
from milnce import search
from milnce.errors import InputError
from milnce.search import Moment, ScoredWindows, distinct, score

if TYPE_CHECKING:
    from pathlib import Path


def drawn(rows: int, width: int = 16, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, width), np.float32), rng.standard_normal((rows, width), np.float32)


def spans(count: int, length_s: float = 1.0, stride_s: float = 2.0) -> Any:  # noqa: ANN401 - an array
    starts = np.arange(count) * stride_s
    return np.stack([starts, starts + length_s], axis=1)


def pool(*files: tuple[str, Any, Any]) -> ScoredWindows:
    windows = ScoredWindows()
    for path, spans_s, scores in files:
        windows.add_file(path)
        windows.add(np.array(spans_s, np.float64).reshape(-1, 2), np.array(scores, np.float32)[:, None])
    return windows


def test_scores_are_dot_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_CHUNK_ROWS", 100)
    queries, embedding = drawn(1037)
    scores = score(queries, embedding)
    assert (scores.dtype.name, scores.shape) == ("float32", (1037, 2))
    exact = embedding.astype(np.float64) @ queries.astype(np.float64).T
    np.testing.assert_allclose(scores, exact, rtol=1e-5, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(
    copies=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    chunk=st.integers(1, 70),
    top=st.integers(1, 70),
    offset=st.integers(0, 15),
)
def test_ranks_as_a_full_sort_does_and_equal_rows_tie(copies: list[int], chunk: int, top: int, offset: int) -> None:
    queries, rows = drawn(5, width=37)
    # At any alignment: rows come from files as well as from the model.
    raw = np.empty(offset * 4 + len(copies) * 37 * 4, np.uint8)
    embedding = raw[offset * 4 :].view(np.float32).reshape(-1, 37)
    embedding[:] = rows[copies]
    best = np.argsort(-(rows @ queries[1]))
    expected = [row for value in best for row, copy in enumerate(copies) if copy == value]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_CHUNK_ROWS", chunk)
        scores = score(queries, embedding)
    windows = ScoredWindows(2)
    windows.add_file("a")
    windows.add(spans(len(copies)), scores)
    found, lowest = windows.find(top, query=1, merge=False)
    assert [moment.start_s / 2 for moment in found] == expected[:top]
    assert [moment.score for moment in found] == [float(scores[row, 1]) for row in expected[:top]]
    assert lowest == scores[:, 1].min()


def broken(value: float) -> Any:  # noqa: ANN401 - an array
    _, embedding = drawn(5000)
    embedding[4711, 3] = value
    return embedding


def ones(*shape: int) -> Any:  # noqa: ANN401 - an array
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("queries", "embedding", "message"),
    [
        (np.ones((1, 4)), ones(2, 4), r"queries: float64 \(1, 4\) given; float32 \(rows, width\) expected"),
        (ones(4), ones(2, 4), r"queries: float32 \(4,\) given"),
        (ones(1, 4), ones(4), r"embedding: float32 \(4,\) given"),
        (ones(1, 4), ones(2, 5), "queries are 4 wide and embedding 5; both must come from the same model"),
        (np.full((1, 4), np.nan, np.float32), ones(2, 4), "the query holds NaN or infinity; make it again"),
        (ones(1, 16), broken(np.nan), "embedding row 4711 holds NaN or infinity; embed that video again"),
        (ones(1, 16), broken(-np.inf), "embedding row 4711 holds NaN or infinity"),
        (
            ones(1, 16) * 1e30,
            broken(2e30),
            r"row 4711 gives an infinite score: its values reach 2e\+30, the query's 1e\+30; embed that video again",
        ),
        (ones(1, 4) * 3e38, ones(2, 4), r"row 0 .*: its values reach 1, the query's 3e\+38; make the query again"),
    ],
)
def test_refuses_what_cannot_be_scored(queries: Any, embedding: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(InputError, match=message):
        score(queries, embedding)


def test_a_moment_names_file_times_and_its_best_window() -> None:
    windows = pool(("a", [[0, 1], [9, 10]], [2, 1]), ("b", [[0, 1], [0.5, 1.5], [5, 6]], [8, 9, 0]))
    found, lowest = windows.find(2)
    assert found == [
        Moment(1, 9.0, "b", 0.0, 1.5, 2, 0.5, 1.5),
        Moment(2, 2.0, "a", 0.0, 1.0, 1, 0.0, 1.0),
    ]
    assert lowest == 0.0
    assert len(windows) == 5


def test_per_file_keeps_the_best_of_each_file() -> None:
    windows = pool(("a", [[0, 1], [9, 10]], [2, 7]), ("b", [[0, 1], [5, 6]], [8, 9]), ("c", [[0, 1]], [-1]))
    for merge in (True, False):
        found, _ = windows.find(5, per_file=True, merge=merge)
        assert [(moment.path, moment.score) for moment in found] == [("b", 9.0), ("a", 7.0), ("c", -1.0)]


def test_a_window_that_comes_again_is_found_once() -> None:
    windows = pool(("a", [[0, 3.2], [0, 3.2], [0, 1.6]], [1, 1, 1]), ("b", [[0, 3.2], [0, 3.2]], [2, 2]))
    found, _ = windows.find(9, merge=False)
    assert sorted((moment.path, moment.end_s, moment.score) for moment in found) == [
        ("a", 1.6, 1.0),
        ("a", 3.2, 1.0),
        ("b", 3.2, 2.0),
    ]
    assert len(windows) == 3


def test_videos_of_the_same_name_are_both_found() -> None:
    windows = pool(("b.mp4", [[0, 3.2]], [1]), ("b.mp4", [[0, 3.2]], [2]))
    for per_file in (False, True):
        assert [moment.score for moment in windows.find(9, per_file=per_file)[0]] == [2.0, 1.0]


def test_windows_may_be_added_after_a_search() -> None:
    windows = pool(("a", [[0, 1]], [1]))
    assert len(windows.find(9)[0]) == 1
    windows.add_file("b")
    windows.add(spans(1), ones(1, 1) * 5)
    assert [moment.path for moment in windows.find(9)[0]] == ["b", "a"]


def test_nothing_to_search_finds_nothing() -> None:
    assert ScoredWindows().find(3) == ([], 0.0)


def test_refuses_uneven_columns_windows_of_no_video_and_no_results() -> None:
    windows = ScoredWindows(2)
    with pytest.raises(InputError, match="no video begun: call add_file first"):
        windows.add(spans(1), ones(1, 2))
    windows.add_file("a")
    with pytest.raises(
        InputError, match=r"spans_s \(2, 2\) and scores \(1, 2\) given; \(windows, 2\) and \(windows, 2\) expected"
    ):
        windows.add(spans(2), ones(1, 2))
    with pytest.raises(InputError, match=r"scores \(1, 1\) given"):
        windows.add(spans(1), ones(1, 1))
    windows.add(spans(1), ones(1, 2))
    with pytest.raises(InputError, match="top is 0; ask for at least 1"):
        windows.find(0)


def test_distinct_keeps_the_first_of_the_same_times_in_their_order() -> None:
    spans_s = np.array([[5, 6], [0, 1], [5, 7], [0, 1], [5, 6], [0, 0.5]], np.float64)
    assert distinct(spans_s).tolist() == [0, 1, 2, 5]
    assert distinct(spans(4)).tolist() == [0, 1, 2, 3]


_MEMORY = """
import json, re, sys
from pathlib import Path
import numpy as np
from milnce.index_file import IndexFile, IndexMakers
from milnce.search import ScoredWindows, score

def peak_mib():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 1024

rng = np.random.default_rng(0)
queries = np.ones((3, 64), np.float32)
starts_s = np.arange(2048.0)
spans_s = np.stack([starts_s, starts_s + 3.2], axis=1)
windows = ScoredWindows(3)
with IndexFile(Path(sys.argv[1]), IndexMakers("a", "b", "sliding", "fp32", 64)) as index:
    def add(numbers):
        for number in numbers:
            index.put_windows(f"{number:064x}", spans_s, rng.standard_normal((2048, 64), np.float32))
        for number in numbers:
            windows.add_file(str(number))
            for part, embedding in index.windows(f"{number:064x}"):
                windows.add(part, score(queries, embedding))
    add(range(1))
    windows.find(10)
    before = peak_mib()
    add(range(1, 151))
for query in range(3):
    windows.find(10, query=query)
print(json.dumps([len(windows), peak_mib() - before]))
"""


def test_a_search_of_an_index_holds_scores_and_no_embeddings(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(tmp_path / "i.sqlite")],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    count, grown_mib = json.loads(done.stdout)
    assert count == 151 * 2048
    assert (tmp_path / "i.sqlite").stat().st_size > 75 << 20
    # 36 bytes a window kept (11 MiB) and some 60 while they are sorted; the embeddings alone are 75 MiB.
    assert 5 < grown_mib < 40
