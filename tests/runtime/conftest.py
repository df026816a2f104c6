"""Fixtures of the runtime's tests."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from helpers.tiny_bundle import Tiny, write_tiny_bundle

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Return a tiny bundle that no test changes."""
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    return Tiny(path, write_tiny_bundle(path))


@pytest.fixture
def copied(tiny: Tiny, tmp_path: Path) -> Path:
    """Return a copy of the tiny bundle that the test may damage."""
    return shutil.copytree(tiny.path, tmp_path / "copy")
