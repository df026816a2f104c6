"""A bundle: a folder with manifest.json, the vocabulary and the ONNX graphs. Opens, verifies, refuses.

Nothing of a bundle is used before its sha256 has been compared with the manifest's, and what is used are the very
bytes that were hashed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from milnce.errors import BundleError, BundleNotFoundError, InputError
from milnce.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    MODULES,
    PRECISIONS,
    GraphFile,
    Manifest,
    VocabularyFile,
    decode,
)
from milnce.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_FILE",
    "MODULES",
    "PRECISIONS",
    "Bundle",
    "GraphFile",
    "Manifest",
    "VocabularyFile",
]

# A manifest is a few kilobytes. The bound keeps a wrong file from being read into memory.
_MANIFEST_LIMIT_BYTES = 16 * 2**20
# The official vocabulary is 0.6 MB.
_VOCABULARY_LIMIT_BYTES = 256 * 2**20
_CHUNK_BYTES = 2**18  # of a graph, read and hashed at once
_CURE = "export the bundle again or copy it again"


class Bundle:
    """An opened bundle. Make one with `Bundle.open`.

    Attributes:
        path: The folder.
        manifest: Its checked manifest.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    def __repr__(self) -> str:
        return f"Bundle({self.manifest.name!r} at {os.fspath(self.path)!r}, {len(self.manifest.graphs)} graphs)"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Open the bundle in folder `path`: read and check its manifest. The other files are checked when read.

        Raises:
            BundleNotFoundError: if there is no bundle; the message says how to make one.
            BundleVersionError: if a newer release wrote it.
            BundleError: if the manifest is damaged.
        """
        folder = Path(path)
        manifest = folder / MANIFEST_FILE
        if not folder.is_dir() or not manifest.exists():
            found = "there is no such folder"
            if folder.is_dir():
                found = f"the folder holds no {MANIFEST_FILE}"
            elif folder.exists():
                found = "it is a file; give the bundle's folder"
            raise BundleNotFoundError(
                f"no milnce bundle at {os.fspath(folder)!r}: {found}. Make one with: "
                "milnce export --weights WEIGHTS.pth --vocab VOCABULARY.npy --out FOLDER"
            )
        return cls(folder, decode(_read_file(folder, MANIFEST_FILE, limit=_MANIFEST_LIMIT_BYTES), source=str(manifest)))

    def graph(self, module: str, *, precision: str = "fp32", input_form: str | None = None) -> GraphFile:
        """Return the graph of `module`.

        Args:
            module: "video", "text" or "projection".
            precision: "fp32", "fp16" or "int8".
            input_form: For video "uint8" or "float32"; None takes the first that the bundle lists.

        Raises:
            InputError: if `module` or `precision` is no such name.
            BundleError: if the bundle lacks the graph; the message lists what it has.
        """
        if module not in MODULES:
            raise InputError(f"module {module!r} given; modules are {', '.join(MODULES)}")
        if precision not in PRECISIONS:
            raise InputError(f"precision {precision!r} given; graphs are {', '.join(PRECISIONS)}")
        for graph in self.manifest.graphs:
            if (graph.module, graph.precision) == (module, precision) and input_form in (None, graph.input_form):
                return graph
        wanted = " ".join(part for part in (module, input_form, precision) if part)
        held = ", ".join(f"{graph.module} {graph.input_form} {graph.precision}" for graph in self.manifest.graphs)
        raise BundleError(
            f"bundle {os.fspath(self.path)!r} has no graph {wanted}; it has: {held}. "
            "Ask for one of those, or export the bundle again with it"
        )

    def read(self, graph: GraphFile) -> bytes:
        """Return the ONNX file of `graph`, after comparing its size and sha256 with the manifest's.

        Raises:
            BundleError: naming the file, if it is missing, changed, or no plain file inside the folder.
        """
        return self._read(graph.file, graph.sha256, limit=graph.bytes, exact=True)

    def view(self, graph: GraphFile) -> memoryview:
        """Return what `read` returns, read-only, for who takes any buffer.

        It is hashed while it is read, chunk by chunk in the cache, into memory with large pages: for the 86 MB of the
        official text graph that takes two thirds of the time. As with `read`, later changes to the file change nothing.

        Raises:
            BundleError: as `read`.
        """
        digest = hashlib.sha256()
        with _opened(self.path, graph.file, limit=graph.bytes, exact=True) as file:
            content = np.empty(graph.bytes, np.uint8).data  # which the file has, so it is not beyond all measure
            position = 0
            while position < len(content) and (count := file.readinto(content[position : position + _CHUNK_BYTES])):
                digest.update(content[position : position + count])
                position += count
        self._compare(graph.file, digest.hexdigest(), graph.sha256)
        return content.toreadonly()

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer over the bundle's vocabulary.

        Raises:
            BundleError: naming the file, if the vocabulary is missing or changed.
        """
        entry = self.manifest.vocabulary
        data = self._read(entry.file, entry.sha256, limit=_VOCABULARY_LIMIT_BYTES)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BundleError(f"{self.path / entry.file} is not UTF-8 ({error}); {_CURE}") from error
        # Split at "\n" alone: words may hold other characters that str.splitlines takes for line ends.
        words = text.removesuffix("\n").split("\n")
        if len(words) != entry.words:
            raise BundleError(
                f"{self.path / entry.file} has {len(words)} words; the manifest says {entry.words}; {_CURE}"
            )
        return Tokenizer(words, entry.max_words)

    def verify(self) -> None:
        """Read every file of the bundle and compare it with the manifest.

        Raises:
            BundleError: naming all files that are missing or changed.
        """
        checks: list[Callable[[], object]] = [self.tokenizer]
        checks += [partial(self.read, graph) for graph in self.manifest.graphs]
        problems = [problem for check in checks if (problem := _problem(check))]
        if len(problems) == 1:
            raise BundleError(problems[0])
        if problems:
            raise BundleError("\n  - ".join([f"{len(problems)} files of the bundle are wrong:", *problems]))

    def _read(self, name: str, sha256: str, *, limit: int, exact: bool = False) -> bytes:
        data = _read_file(self.path, name, limit=limit, exact=exact)
        self._compare(name, hashlib.sha256(data).hexdigest(), sha256)
        return data

    def _compare(self, name: str, found: str, sha256: str) -> None:
        if found != sha256:
            raise BundleError(
                f"{self.path / name} was changed or damaged: its sha256 is {found}, the manifest says {sha256}; {_CURE}"
            )


def _problem(check: Callable[[], object]) -> str | None:
    try:
        check()
    except BundleError as error:
        return str(error)
    return None


def _read_file(folder: Path, name: str, *, limit: int, exact: bool = False) -> bytes:
    """Read a plain file of at most, or of exactly, `limit` bytes inside `folder`."""
    with _opened(folder, name, limit=limit, exact=exact) as file:
        return file.read(limit + 1)


@contextmanager
def _opened(folder: Path, name: str, *, limit: int, exact: bool) -> Iterator[BufferedReader]:
    """Open a plain file of at most, or of exactly, `limit` bytes inside `folder`; say what the system refuses."""
    path = folder / name
    try:
        if path.resolve().parent != folder.resolve():
            raise BundleError(f"{path} is a link that leaves the bundle's folder, which is refused; {_CURE}")
        # Non-blocking, so that a named pipe in the folder is refused instead of waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{path} is not a plain file; {_CURE}")
            if status.st_size > limit or (exact and status.st_size != limit):
                expected = f"{limit} expected" if exact else f"at most {limit} expected"
                raise BundleError(f"{path} was changed or cut: it has {status.st_size} bytes, {expected}; {_CURE}")
            yield file
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        if isinstance(error, BundleError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise BundleError(f"{path} cannot be read ({reason}); {_CURE}") from error
