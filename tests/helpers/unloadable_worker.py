"""A decoding process on a machine whose PyAV does not load."""

from __future__ import annotations

from typing import NoReturn

from milnce.decoding import worker
from milnce.errors import MissingDependencyError


def main() -> None:
    """Say so, as the real one does."""

    def fail() -> NoReturn:
        raise MissingDependencyError("videos are decoded with PyAV, which cannot be imported (libavcodec.so: bad ELF)")

    vars(worker)["import_av"] = fail
    worker.main()
