"""From decoded clips to embeddings: runs batches, hands rows back to their files, gives one result a file, in order."""

from __future__ import annotations

from collections import deque
from concurrent.futures import wait
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from milnce.decoding.events import Batch, FileDecoded, FileFailed, WindowDecoded
from milnce.errors import NonFiniteError
from milnce.file_embeddings import FileEmbeddings, WindowSpan
from milnce.outputs import not_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from milnce.decoding.events import ClipOf, ClipSource, Event
    from milnce.errors import MilnceError
    from milnce.model import Model
    from milnce.video import Preset

# Batches whose results are not waited for. A backend on a GPU has as many slots by default, and blocks beyond them.
_UNDER_WAY = 3


@dataclass(slots=True, eq=False)
class _File:
    """One file under way. Equal windows share a clip."""

    spans: list[WindowSpan] = field(default_factory=list)
    clip_of: list[int] = field(default_factory=list)  # for each window, which of the file's clips it is
    rows: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=dict)  # of each clip
    decoded: bool = False
    error: MilnceError | None = None

    @property
    def done(self) -> bool:
        clips = self.clip_of[-1] + 1 if self.clip_of else 0
        return self.error is not None or (self.decoded and len(self.rows) == clips)

    def fail(self, error: MilnceError) -> None:
        self.error = error
        self.spans, self.clip_of, self.rows = [], [], {}


class EmbeddingStream:
    """Runs what a source decodes.

    Args:
        model: A model with its video graph.
        preset: How the source samples.
        paths: The source's files.
        source: Gives events and batches.
        on_window: Called with the file and the window after each window is decoded.
    """

    def __init__(
        self,
        model: Model,
        preset: Preset,
        paths: Sequence[Path],
        source: ClipSource,
        on_window: Callable[[Path, WindowSpan], None] | None,
    ) -> None:
        self._model = model
        self._preset = preset
        self._paths = paths
        self._source = source
        self._on_window = on_window
        self._files: dict[int, _File] = {}
        self._head = 0
        self._backend = model.open("video", input_form="uint8")
        # A batch on a GPU is only started, so that the next one is copied while it is computed.
        self._submits = self._backend.device != "cpu"
        self._under_way: deque[tuple[Batch, Future[dict[str, NDArray[Any]]]]] = deque()

    def results(self) -> Iterator[FileEmbeddings]:
        """Yield one result a file, in their order. Closing the iterator closes the source."""
        with closing(self._source):
            try:
                for number, path in enumerate(self._paths):
                    file = self._file(number)
                    while not file.done:
                        self._step()
                    del self._files[number]
                    self._head = number + 1
                    self._source.passed(number)
                    yield self._result(path, file)
            finally:
                # Memory of the source on a GPU is read until they are done.
                wait([future for _, future in self._under_way])

    def _step(self) -> None:
        found = self._source.next(wait=not self._under_way)
        if isinstance(found, Batch):
            self._run(found)
        elif found is not None:
            for event in found:
                self._heed(event)
        else:
            self._finish(*self._under_way.popleft())

    def _heed(self, event: Event) -> None:
        number = event.of.file if isinstance(event, WindowDecoded) else event.file
        if number < self._head:  # it failed in the model, and was handed on
            return
        file = self._file(number)
        if isinstance(event, FileFailed):
            file.fail(event.error)
        elif isinstance(event, FileDecoded):
            file.decoded = True
        elif file.error is None:
            span = WindowSpan(event.index, event.start_s, event.end_s, event.video_s)
            file.spans.append(span)
            file.clip_of.append(event.of.clip)
            if self._on_window is not None:
                self._on_window(self._paths[number], span)

    def _run(self, batch: Batch) -> None:
        if self._submits:
            while len(self._under_way) >= _UNDER_WAY:
                self._finish(*self._under_way.popleft())
            name = self._backend.inputs[0].name
            self._under_way.append((batch, self._backend.submit({name: batch.clips})))
            if isinstance(batch.clips, np.ndarray):  # it was copied, while arrays on the GPU are read where they lie
                self._source.release(batch)
            return
        try:
            found = self._model.encode_video(batch.clips, batch_size=len(batch.clips))
            self._hand_back(batch.owners, found.embedding, found.mixed_5c)
        except NonFiniteError as error:
            self._fail(batch.owners, error)
        self._source.release(batch)

    def _finish(self, batch: Batch, future: Future[dict[str, NDArray[Any]]]) -> None:
        """Wait for a batch that was started."""
        found, owners = future.result(), batch.owners
        if not isinstance(batch.clips, np.ndarray):
            self._source.release(batch)
        for name in ("video_embedding", "mixed_5c"):
            if not np.isfinite(found[name]).all():
                self._fail(owners, not_finite(self._backend, name))
                return
        self._hand_back(owners, found["video_embedding"], found["mixed_5c"])

    def _hand_back(self, owners: list[ClipOf], embedding: NDArray[np.float32], mixed_5c: NDArray[np.float32]) -> None:
        for owner, *rows in zip(owners, embedding, mixed_5c, strict=True):
            file = self._files.get(owner.file)
            if file is not None and file.error is None:
                file.rows[owner.clip] = (rows[0], rows[1])

    def _fail(self, owners: list[ClipOf], error: NonFiniteError) -> None:
        for number in dict.fromkeys(owner.file for owner in owners):
            if number >= self._head:
                self._file(number).fail(NonFiniteError(f"{self._paths[number]}: {error}"))
                self._source.drop(number)

    def _file(self, number: int) -> _File:
        return self._files.setdefault(number, _File())

    def _result(self, path: Path, file: _File) -> FileEmbeddings:
        embedding, mixed_5c = (
            np.stack([file.rows[clip][output] for clip in file.clip_of])
            if file.clip_of
            else np.empty((0, width), np.float32)
            for output, width in enumerate(_widths(self._model))
        )
        file.rows.clear()  # whoever holds the result must not hold them twice
        return FileEmbeddings(path, tuple(file.spans), embedding, mixed_5c, file.error, self._preset)


def _widths(model: Model) -> tuple[int, int]:
    """Widths of `video_embedding` and `mixed_5c`, from the manifest."""
    graph = next(graph for graph in model.bundle.manifest.graphs if graph.module == "video")
    widths = {spec.name: spec.shape[-1].minimum for spec in graph.outputs}
    return widths["video_embedding"], widths["mixed_5c"]
