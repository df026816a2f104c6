"""Writes the folder of another system (a Triton repository, a DeepStream configuration): whole, or not at all.

Everything goes to a hidden sibling of the destination first and is renamed at the end. A file `milnce.json` in the
folder says what wrote it; only a folder that has it is ever replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import milnce
from milnce.errors import BundleError, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from milnce.bundle import Bundle

RECORD_FILE = "milnce.json"


def check_destination(destination: Path, kind: str, *, overwrite: bool) -> None:
    """Refuse a destination that may not be written, before the work and not after it.

    Args:
        destination: The folder to make.
        kind: What it will be, as `folder_record` writes it: "triton" or "deepstream".
        overwrite: Whether a folder of the same kind, written by milnce, may be replaced.

    Raises:
        OutputError: if there is something that may not be replaced.
    """
    if not os.path.lexists(destination):
        return
    if not overwrite:
        raise OutputError(f"{destination} exists already; choose another folder, or overwrite it (--overwrite)")
    if destination.is_symlink() or _kind(destination) != kind:
        raise OutputError(
            f"{destination} exists and is no {kind} folder that milnce wrote ({RECORD_FILE} would say so), so it is "
            "not overwritten; choose another folder"
        )


@contextmanager
def new_folder(destination: Path, kind: str, *, overwrite: bool) -> Iterator[Path]:
    """Give an empty folder to write to, which becomes `destination` when the block ends without an exception.

    Args:
        destination: The folder to make; missing parents are made.
        kind: As `check_destination` takes it.
        overwrite: Likewise.

    Yields:
        The folder to write to.

    Raises:
        OutputError: if the destination may not be replaced, or something cannot be written.
    """
    final = destination.absolute()
    check_destination(final, kind, overwrite=overwrite)
    folder: Path | None = None
    made: list[Path] = []
    try:
        for parent in reversed([parent for parent in final.parents if not parent.exists()]):
            parent.mkdir()
            made.append(parent)
        folder = Path(tempfile.mkdtemp(prefix=f".{final.name}.partial-", dir=final.parent))
        yield folder
        check_destination(final, kind, overwrite=overwrite)
        folder.chmod(0o755)  # mkdtemp makes it readable for the owner only; servers run as other users
        _move_in(folder, final)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise OutputError(f"{final} cannot be written: {error.strerror or error}{where}") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # not empty: the folder is there, or somebody else put something there
            for parent in reversed(made):
                parent.rmdir()


def folder_record(bundle: Bundle, kind: str, **details: Any) -> bytes:  # noqa: ANN401 - JSON values
    """Return the content of milnce.json: what the folder is and what it was made from.

    Args:
        bundle: The bundle it was made from.
        kind: "triton" or "deepstream".
        **details: What else to say, as JSON values.
    """
    manifest = bundle.manifest
    document: Mapping[str, Any] = {
        "kind": kind,
        "written_by": f"milnce {milnce.__version__}",
        "date": datetime.now(tz=timezone.utc).isoformat(timespec="seconds"),
        "bundle": {"name": manifest.name, "model_digest": manifest.model_digest, "sampling": dict(manifest.sampling)},
        **details,
    }
    return json.dumps(document, indent=1, allow_nan=False).encode() + b"\n"


def vocabulary_bytes(bundle: Bundle) -> bytes:
    """Return the bundle's word list, after comparing it with the manifest.

    Raises:
        BundleError: naming the file, if it is missing or changed.
    """
    entry = bundle.manifest.vocabulary
    bundle.tokenizer()  # refuses links out of the folder, and what is no list of words
    data = (bundle.path / entry.file).read_bytes()
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise BundleError(f"{bundle.path / entry.file} was changed while it was read; copy the bundle again")
    return data


def write_file(path: Path, data: bytes) -> None:
    """Write a new file, flushed to disk; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _move_in(folder: Path, final: Path) -> None:
    """Rename `folder` to the destination; an old one there steps aside first and comes back on failure."""
    aside = folder.with_name(f"{folder.name}-old")
    replaced = final.exists()
    try:
        if replaced:
            final.rename(aside)
        folder.rename(final)
    except BaseException:
        if aside.exists() and not final.exists():
            aside.rename(final)
        raise
    if replaced:
        shutil.rmtree(aside, ignore_errors=True)


def _kind(folder: Path) -> object:
    try:
        document = json.loads((folder / RECORD_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return document.get("kind") if isinstance(document, dict) else None
