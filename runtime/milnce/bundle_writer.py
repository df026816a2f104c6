"""Writes a bundle so that it is there whole or not at all.

Everything goes to a hidden sibling of the destination first, is flushed to disk, and is renamed at the end.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milnce.errors import InputError, OutputError
from milnce.manifest import FORMAT_VERSION, MANIFEST_FILE, GraphFile, Manifest, VocabularyFile, encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from milnce.specs import TensorSpec

VOCABULARY_FILE = "vocabulary.txt"


class BundleWriter:
    """Context manager that writes one bundle.

    Add graphs and the vocabulary, then call `commit`. Leaving without it, by an exception or Ctrl-C too, removes
    all that was written.

    Args:
        destination: Folder of the bundle. Missing parents are made.
        overwrite: Replace an existing bundle there. Anything that is not a bundle is never replaced.

    Raises:
        OutputError: on entry, before anything is written, if the destination exists and may not be replaced, or if
            nothing can be written beside it.
    """

    def __init__(self, destination: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self.destination = Path(destination).absolute()
        self.overwrite = overwrite
        self._folder: Path | None = None
        self._made_parents: list[Path] = []
        self._graphs: list[GraphFile] = []
        self._vocabulary: VocabularyFile | None = None

    def __enter__(self) -> Self:
        self._check_destination()
        try:
            with _as_output_error(self.destination):
                self._make_parents()
                name = f".{self.destination.name}.partial-"
                self._folder = Path(tempfile.mkdtemp(prefix=name, dir=self.destination.parent))
        except BaseException:
            self._remove_parents()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
            self._remove_parents()

    def add_graph(  # noqa: PLR0913 - one argument a field of the manifest
        self,
        *,
        module: str,
        input_form: str,
        precision: str,
        model: bytes,
        opset: int,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        parity: Mapping[str, Any],
    ) -> GraphFile:
        """Write one ONNX graph. The arguments are the fields of `GraphFile`; `model` is the file's content.

        Raises:
            OutputError: if it cannot be written.
        """
        form = "" if module in ("text", "projection") else f"-{input_form}"
        file = f"{module}{form}-{precision}.onnx"
        self._write(file, model)
        graph = GraphFile(
            module=module,
            input_form=input_form,
            precision=precision,
            file=file,
            sha256=hashlib.sha256(model).hexdigest(),
            bytes=len(model),
            opset=opset,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            parity=dict(parity),
        )
        self._graphs.append(graph)
        return graph

    def add_vocabulary(self, words: Sequence[str], *, max_words: int) -> None:
        """Write the word list, in the order of the text tower's table (row = index + 1).

        Args:
            words: The words.
            max_words: Ids in a row of the tokenizer's output.

        Raises:
            InputError: if there is no word, or one cannot be a line of UTF-8 text.
            OutputError: if it cannot be written.
        """
        if not words:
            raise InputError("the vocabulary has no words")
        for index, word in enumerate(words):
            if "\n" in word:
                raise InputError(f"word {index} of the vocabulary, {word!r}, holds a line end")
        try:
            data = "".join(f"{word}\n" for word in words).encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"the vocabulary cannot be written as UTF-8: {error}") from error
        self._write(VOCABULARY_FILE, data)
        digest = hashlib.sha256(data).hexdigest()
        self._vocabulary = VocabularyFile(VOCABULARY_FILE, digest, words=len(words), max_words=max_words)

    def commit(self, *, name: str, model_digest: str, sampling: Mapping[str, Any], made: Mapping[str, Any]) -> None:
        """Write the manifest and move the bundle to its destination. The arguments are fields of `Manifest`.

        Raises:
            BundleError: if the manifest would be refused by the reader.
            InputError: if no vocabulary was added.
            OutputError: if it cannot be written, or the destination came into being meanwhile.
        """
        if self._vocabulary is None:
            raise InputError("a bundle needs a vocabulary: call add_vocabulary before commit")
        graphs = tuple(self._graphs)
        manifest = Manifest(FORMAT_VERSION, name, model_digest, graphs, self._vocabulary, dict(sampling), dict(made))
        self._write(MANIFEST_FILE, encode(manifest, source=MANIFEST_FILE))
        self._check_destination()
        folder = self._open_folder()
        with _as_output_error(self.destination):
            folder.chmod(0o777 & ~_umask())  # mkdtemp makes it readable for the owner only
            _sync_folder(folder)
            self._move_in(folder)
            _sync_folder(self.destination.parent)

    def _move_in(self, folder: Path) -> None:
        """Rename `folder` to the destination; an old bundle there steps aside first and comes back on failure."""
        aside = folder.with_name(f"{folder.name}-old")
        replaced = self.destination.exists()
        try:
            if replaced:
                self.destination.rename(aside)
            folder.rename(self.destination)
        except BaseException:
            if aside.exists() and not self.destination.exists():
                aside.rename(self.destination)
            raise
        self._folder = None
        if replaced:
            shutil.rmtree(aside, ignore_errors=True)

    def _open_folder(self) -> Path:
        if self._folder is None:
            raise InputError("the writer is not open: use it in a with statement, and add nothing after commit")
        return self._folder

    def _write(self, name: str, data: bytes) -> None:
        path = self._open_folder() / name
        with _as_output_error(self.destination), path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _check_destination(self) -> None:
        path = self.destination
        if not os.path.lexists(path):
            return
        if not self.overwrite:
            raise OutputError(f"{path} exists already; choose another folder, or overwrite it (--overwrite)")
        if path.is_symlink() or not (path / MANIFEST_FILE).is_file():
            raise OutputError(f"{path} exists and is not a bundle, so it is not overwritten; choose another folder")

    def _make_parents(self) -> None:
        missing = [parent for parent in self.destination.parents if not parent.exists()]
        for parent in reversed(missing):
            parent.mkdir()
            self._made_parents.append(parent)

    def _remove_parents(self) -> None:
        with suppress(OSError):  # somebody else put something there
            for parent in reversed(self._made_parents):
                parent.rmdir()
        self._made_parents.clear()


@contextmanager
def _as_output_error(destination: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        where = f" ({error.filename})" if error.filename else ""
        raise OutputError(f"the bundle cannot be written to {destination}: {reason}{where}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    # Python reads the mask only by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
