"""The folder of a bundle's TensorRT plans: reads and writes plans and their sidecars, and trusts nothing it reads.

A plan is native code to the library that deserialises it, so nothing of one is used before owner and mode of its
folder and of its files, its size and its sha256 have been looked at, and what is used are the very bytes that were
hashed.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

from milnce.errors import MilnceWarning, OutputError, PlanError
from milnce.own_files import (
    BUILD_AGAIN,
    close_to_others,
    locked,
    own_file,
    own_folder,
    remove_abandoned,
    temporary_file,
)
from milnce.plan_file import Plan, decode, encode, plan_name

if TYPE_CHECKING:
    from pathlib import Path

PLAN_SUFFIX, SIDECAR_SUFFIX = ".plan", ".json"

# A sidecar is a few kilobytes. The bound keeps a wrong file from being read into memory.
_SIDECAR_LIMIT_BYTES = 2**20
# Timings and kernels of many builds take some tens of megabytes.
_CACHE_LIMIT_BYTES = 512 * 2**20
_DIGEST_BYTES = hashlib.sha256().digest_size


def sidecars(folder: Path) -> tuple[list[Plan], list[str]]:
    """Return what the sidecars in `folder` say, and what is wrong with those that cannot be read, one text each.

    Raises:
        PlanError: if the folder is missing, somebody else's, or writable for others.
    """
    plans, problems = [], []
    with own_folder(folder) as descriptor:
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
    """Return the plan's bytes, after looking at the folder's and the file's owner and mode, its size and sha256.

    Args:
        folder: The folder of plans.
        plan: Its sidecar.

    Raises:
        PlanError: naming the file, if it is missing, changed or not to be trusted.
    """
    path = folder / plan.file
    with own_folder(folder) as descriptor, own_file(path, descriptor) as file:
        size = os.fstat(file.fileno()).st_size
        # Before anything is read, since either number may be more than memory holds.
        if size != plan.bytes:
            raise PlanError(
                f"{path} was cut or changed: it has {size} bytes, its sidecar says {plan.bytes}; {BUILD_AGAIN}"
            )
        data = file.read(size)
    found = hashlib.sha256(data).hexdigest()
    if found != plan.sha256:
        raise PlanError(
            f"{path} was changed or damaged: its sha256 is {found}, its sidecar says {plan.sha256}; {BUILD_AGAIN}"
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
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (
            own_folder(folder) as descriptor,
            temporary_file(folder, descriptor, written.file, data) as new_plan,
            temporary_file(folder, descriptor, written.file, content) as new_sidecar,
            locked(descriptor),
        ):
            _move_in(folder / written.file, new_plan, new_sidecar)
            os.fsync(descriptor)
    except OSError as error:
        raise _unwritable(folder, error) from error
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

    An own folder that others can read is closed to them, with a warning. What builds that were killed left is removed.

    Returns:
        Whether it was made now; if not, it was there.

    Raises:
        PlanError: if the folder is somebody else's, or writable for others.
        OutputError: if it cannot be made or written to.
    """
    try:
        made = not folder.exists()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with own_folder(folder) as descriptor:
            if close_to_others(descriptor):
                warnings.warn(
                    f"{folder} was open for others to read, and is now for its owner alone (mode 0700); if others run "
                    f"its plans: chmod 0755 {folder}",
                    MilnceWarning,
                    stacklevel=2,
                )
            remove_abandoned(descriptor)
            with temporary_file(folder, descriptor, "trial", b""):
                pass
    except OSError as error:
        raise _unwritable(folder, error) from error
    return made


def read_cache(folder: Path, name: str) -> bytes | None:
    """Return what `write_cache` wrote, or None if there is nothing; what is damaged is None too, with a warning.

    Raises:
        PlanError: if the folder is missing, somebody else's, or writable for others: a cache holds compiled kernels.
    """
    path = folder / name
    with own_folder(folder) as descriptor:
        if not path.exists():
            return None
        try:
            with own_file(path, descriptor) as file:
                data = file.read(_CACHE_LIMIT_BYTES + 1)
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
        whole = hashlib.sha256(content).digest() + content
        with own_folder(folder) as descriptor, temporary_file(folder, descriptor, name, whole) as new:
            new.rename(folder / name)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"plans cannot be written to {folder}: {error.strerror or error}; choose another folder (--plans FOLDER)"
    )


def _sidecar(folder: Path, descriptor: int, name: str) -> Plan:
    path = folder / f"{name}{SIDECAR_SUFFIX}"
    with own_file(path, descriptor) as file:
        data = file.read(_SIDECAR_LIMIT_BYTES + 1)
    if len(data) > _SIDECAR_LIMIT_BYTES:
        raise PlanError(f"{path} is larger than {_SIDECAR_LIMIT_BYTES} bytes, so it is no sidecar; {BUILD_AGAIN}")
    plan = decode(data, source=str(path))
    if plan.file != name:
        raise PlanError(f"{path} is the sidecar of {plan.file}, not of {name}; {BUILD_AGAIN}")
    return plan
