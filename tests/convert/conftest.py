"""Fixtures of the converter's tests: each tower is traced once a session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helpers.graphs import ROWS, Traced, short_towers, trace
from milnce_convert.fixtures import seeded_towers
from milnce_convert.towers import TowersConfig

if TYPE_CHECKING:
    from milnce_convert.checkpoint import Towers


@pytest.fixture(scope="session")
def quarter() -> Traced:
    """Return quarter-width towers of the published plan, traced."""
    return trace(seeded_towers(0, TowersConfig.scaled(0.25, rows=ROWS)))


@pytest.fixture(scope="session")
def full() -> Traced:
    """Return towers of the published widths, traced."""
    return trace(seeded_towers(0))


@pytest.fixture(scope="session")
def short() -> Towers:
    """Return narrow towers with three Inception blocks."""
    return short_towers()


@pytest.fixture(scope="session")
def short_traced(short: Towers) -> Traced:
    """Return the narrow towers, traced."""
    return trace(short)
