"""From clips to results, whatever order a source gives clips, events and ends of files in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.tiny_bundle import tiny_clips
from milnce.decoding.events import Batch, ClipOf, FileDecoded, FileFailed, WindowDecoded
from milnce.embedding_stream import EmbeddingStream
from milnce.errors import NonFiniteError, VideoError
from milnce.video import get_preset

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from milnce.decoding.events import Event
    from milnce.model import Model

PATHS = [Path("0.mp4"), Path("1.mp4")]
CLIPS = tiny_clips(4)


class Scripted:
    """Gives what a test says."""

    def __init__(self, *script: list[Event] | Batch) -> None:
        self._script = list(script)
        self.calls: list[tuple[str, int]] = []

    def next(self, *, wait: bool) -> list[Event] | Batch | None:
        """Return the next item of the script."""
        assert wait
        return self._script.pop(0)

    def release(self, batch: Batch) -> None:
        """Note it."""
        self.calls.append(("release", len(batch.owners)))

    def drop(self, file: int) -> None:
        """Note it."""
        self.calls.append(("drop", file))

    def passed(self, file: int) -> None:
        """Note it."""
        self.calls.append(("passed", file))

    def close(self) -> None:
        """Note it."""
        self.calls.append(("close", 0))


def window(file: int, clip: int, index: int | None = None) -> WindowDecoded:
    return WindowDecoded(ClipOf(file, clip), clip if index is None else index, 0.0, 1.0, 9.0)


def batch(*owners: tuple[int, int, int]) -> Batch:
    """Return a batch of (file, clip, which of `CLIPS`)."""
    clips = np.stack([CLIPS[number] for *_, number in owners])
    return Batch(clips, [ClipOf(file, clip) for file, clip, _ in owners], range(len(owners)))


def results(model: Model, source: Scripted, seen: list[Any] | None = None) -> Sequence[Any]:
    preset = get_preset("sliding", frames=4, size=32)
    noted = [] if seen is None else seen
    stream = EmbeddingStream(model, preset, PATHS, source, lambda path, span: noted.append((path, span.index)))
    return list(stream.results())


def test_rows_go_to_their_windows_in_whatever_order_clips_are_run(model: Model) -> None:
    source = Scripted(
        [window(0, 0), window(1, 0), window(0, 1), window(0, 1, 2)],
        batch((0, 1, 1), (1, 0, 2)),
        [FileDecoded(0), FileDecoded(1)],
        batch((0, 0, 0)),
    )
    first, second = results(model, source)
    rows = model.encode_video(CLIPS).embedding
    np.testing.assert_allclose(first.embedding, rows[[0, 1, 1]], rtol=1e-6)
    np.testing.assert_allclose(second.embedding, rows[[2]], rtol=1e-6)
    assert source.calls == [("release", 2), ("release", 1), ("passed", 0), ("passed", 1), ("close", 0)]


def test_what_comes_late_of_a_file_that_was_handed_on_is_nobodys(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, calls = model.encode_video, []

    def spoil(clips: Any, *, batch_size: int) -> Any:  # noqa: ANN401 - as the model's
        calls.append(batch_size)
        if len(calls) == 1:
            raise NonFiniteError("NaN")
        return encode(clips, batch_size=batch_size)

    monkeypatch.setattr(model, "encode_video", spoil)
    seen: list[Any] = []
    source = Scripted(
        [window(0, 0)],
        batch((0, 0, 0)),
        [window(0, 1), FileFailed(0, VideoError("late")), window(1, 0)],
        batch((0, 1, 1), (1, 0, 2)),
        [FileDecoded(1)],
    )
    first, second = results(model, source, seen)
    assert (str(first.error), first.windows) == ("0.mp4: NaN", ())
    assert second.error is None
    assert len(second.windows) == 1
    assert seen == [(PATHS[0], 0), (PATHS[1], 0)]
    assert source.calls[:3] == [("drop", 0), ("release", 1), ("passed", 0)]
