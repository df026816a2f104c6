"""The folder of a bundle's TensorRT plans: reads and writes plans and their sidecars, and trusts nothing it reads.

A plan is native code to the library that deserialises it, so nothing of one is used before its folder's owner and
mode, its size and its sha256 have been looked at, and what is used are the very bytes that were hashed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
import warnings
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from milnce.errors import MilnceWarning, OutputError, PlanError
from milnce.plan_file import Plan, decode, encode, plan_name

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAN_SUFFIX, SIDECAR_SUFFIX = ".plan", ".json"

# A sidecar is a few kilobytes. The bound keeps a wrong file from being read into memory.
_SIDECAR_LIMIT_BYTES = 2**20
# Timings and kernels of many builds take some tens of megabytes.
_CACHE_LIMIT_BYTES = 512 * 2**20
_DIGEST_BYTES = hashlib.sha256().digest_size
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_AGAIN = "build it again: milnce build BUNDLE --force"


def sidecars(folder: Path) -> tuple[list[Plan], list[str]]:
    """Return what the sidecars in `folder` say, and what is wrong with those that cannot be read, one text each.

    Raises:
        PlanError: if the folder is missing, somebody else's, or writable for others.
    """
    plans, problems = [], []
    with _opened(folder) as descriptor:
        names = sorted(os.listdir(descriptor))  # noqa: PTH208  pathlib lists no descriptors
        for name in names:
            if not name.endswith(PLAN_SUFFIX) or name.startswith("."):
                continue
            if f"{name}{SIDECAR_SUFFIX}" not in names:
                problems.append(f"{name}: it has no sidecar {name}{SIDECAR_SUFFIX}, so it is never loaded")
                continue
            try:
                plans.append(_sidecar(folder, descriptor, name))
            except PlanError as error:
                problems.append(str(error).replace("\n  - ", " "))
    return plans, problems


def read_plan(folder: Path, plan: Plan) -> bytes:
    """Return the plan's bytes, after looking at the folder's owner and mode and the file's kind, size and sha256.

    Args:
        folder: The folder of plans.
        plan: Its sidecar.

    Raises:
        PlanError: naming the file, if it is missing, changed or not to be trusted.
    """
    path = folder / plan.file
    with _opened(folder) as descriptor:
        data = _read(path, descriptor, limit=plan.bytes)
    if len(data) != plan.bytes:
        raise PlanError(f"{path} was cut or changed: it has {len(data)} bytes, its sidecar says {plan.bytes}; {_AGAIN}")
    found = hashlib.sha256(data).hexdigest()
    if found != plan.sha256:
        raise PlanError(
            f"{path} was changed or damaged: its sha256 is {found}, its sidecar says {plan.sha256}; {_AGAIN}"
        )
    return data


def write_plan(folder: Path, data: bytes, plan: Plan) -> Plan:
    """Write a plan and its sidecar; a plan of the same name is replaced.

    Both are written and flushed before anything that is there is touched. The old sidecar goes first and the new one
    comes last, so that no plan ever lies beside the sidecar of another.

    Args:
        folder: The folder of plans; made for the owner alone (0700) where it is missing.
        data: The plan.
        plan: Its sidecar; `file`, `sha256` and `bytes` are filled in here.

    Returns:
        The sidecar as written.

    Raises:
        PlanError: if the folder is somebody else's, or writable for others.
        OutputError: if it cannot be written.
    """
    written = replace(plan, file=plan_name(plan), sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    content = encode(written)
    temporary: list[Path] = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opened(folder) as descriptor:
            temporary.append(_write_temporary(folder, written.file, data))
            temporary.append(_write_temporary(folder, written.file, content))
            with suppress(OSError):  # where a file system has no locks, two builds at once may spoil each other
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            _move_in(folder / written.file, *temporary)
            os.fsync(descriptor)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
    return written


def _move_in(plan: Path, data: Path, content: Path) -> None:
    """Rename both files to their places. What fails half-way leaves neither: a plan without sidecar is of no use."""
    sidecar = plan.with_name(f"{plan.name}{SIDECAR_SUFFIX}")
    sidecar.unlink(missing_ok=True)
    try:
        data.rename(plan)
        content.rename(sidecar)
    except BaseException:
        plan.unlink(missing_ok=True)
        raise


def make_folder(folder: Path) -> bool:
    """Make the folder of plans, for the owner alone, and make sure that plans can be written there.

    Returns:
        Whether it was made now; if not, it was there.

    Raises:
        PlanError: if the folder is somebody else's, or writable for others.
        OutputError: if it cannot be made or written to.
    """
    try:
        made = not folder.exists()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opened(folder):
            _write_temporary(folder, "trial", b"").unlink()
    except OSError as error:
        raise _unwritable(folder, error) from error
    return made


def read_cache(folder: Path, name: str) -> bytes | None:
    """Return what `write_cache` wrote, or None if there is nothing; what is damaged is None too, with a warning.

    Raises:
        PlanError: if the folder is missing, somebody else's, or writable for others: a cache holds compiled kernels.
    """
    path = folder / name
    with _opened(folder) as descriptor:
        if not path.exists():
            return None
        try:
            data = _read(path, descriptor, limit=_CACHE_LIMIT_BYTES)
        except PlanError as error:
            warnings.warn(f"a cache is not used: {error}", MilnceWarning, stacklevel=2)
            return None
    content = data[_DIGEST_BYTES:]
    if len(data) > _CACHE_LIMIT_BYTES or hashlib.sha256(content).digest() != data[:_DIGEST_BYTES]:
        warnings.warn(f"{path} is damaged and not used; a new one is begun", MilnceWarning, stacklevel=2)
        return None
    return content


def write_cache(folder: Path, name: str, content: bytes) -> None:
    """Keep a cache in the folder of plans, behind its own sha256.

    Raises:
        PlanError: if the folder is missing, somebody else's, or writable for others.
        OutputError: if it cannot be written.
    """
    try:
        with _opened(folder):
            temporary = _write_temporary(folder, name, hashlib.sha256(content).digest() + content)
            temporary.rename(folder / name)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"plans cannot be written to {folder}: {error.strerror or error}; choose another folder (--plans FOLDER)"
    )


def _write_temporary(folder: Path, name: str, data: bytes) -> Path:
    descriptor, path = tempfile.mkstemp(prefix=f".{name[:100]}.partial-", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        Path(path).unlink(missing_ok=True)
        raise
    return Path(path)


def _sidecar(folder: Path, descriptor: int, name: str) -> Plan:
    path = folder / f"{name}{SIDECAR_SUFFIX}"
    data = _read(path, descriptor, limit=_SIDECAR_LIMIT_BYTES)
    if len(data) > _SIDECAR_LIMIT_BYTES:
        raise PlanError(f"{path} is larger than {_SIDECAR_LIMIT_BYTES} bytes, so it is no sidecar; {_AGAIN}")
    plan = decode(data, source=str(path))
    if plan.file != name:
        raise PlanError(f"{path} is the sidecar of {plan.file}, not of {name}; {_AGAIN}")
    return plan


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """Open the folder and check who may write to it; files are then opened through the descriptor, not by its name.

    Raises:
        PlanError: if it is missing, no folder, somebody else's, or writable for others.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise PlanError(
            f"there are no plans at {folder} ({error.strerror}); build them: milnce build BUNDLE"
        ) from error
    try:
        status = os.fstat(descriptor)
        # Root may do as it likes anyway, and plans that root built into an image are run by others.
        if status.st_uid not in (os.geteuid(), 0):
            raise PlanError(
                f"{folder} belongs to user {status.st_uid}, and this is user {os.geteuid()}. A plan is native code, so "
                "those of others are not run; build your own: milnce build BUNDLE --plans FOLDER"
            )
        if status.st_mode & _WRITABLE_BY_OTHERS:
            raise PlanError(
                f"{folder} is writable for others (mode {stat.S_IMODE(status.st_mode):04o}). A plan is native code, so "
                f"nobody else may change it; if you trust what it holds: chmod go-w {folder}"
            )
        yield descriptor
    finally:
        os.close(descriptor)


def _read(path: Path, folder: int, *, limit: int) -> bytes:
    """Return at most `limit` + 1 bytes of the plain file of `path`'s name in the folder's descriptor."""
    try:
        # No link is followed, and a named pipe is refused instead of waited for.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(path.name, flags, dir_fd=folder), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise PlanError(f"{path} is not a plain file; {_AGAIN}")
            return file.read(limit + 1)
    except OSError as error:
        raise PlanError(f"{path} cannot be read ({error.strerror}); {_AGAIN}") from error
