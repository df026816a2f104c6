"""The installed TensorRT-RTX, whose builder needs no GPU."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

REQUIRE = "MILNCE_REQUIRE_RTX"


def require_rtx() -> ModuleType:
    """Return the module, or skip the test without it; with MILNCE_REQUIRE_RTX=1 the test fails instead."""
    try:
        return import_module("tensorrt_rtx")
    except ImportError as error:
        if os.environ.get(REQUIRE) == "1":
            pytest.fail(f"{REQUIRE}=1, but tensorrt_rtx does not load: {error}")
        pytest.skip(f"tensorrt_rtx does not load: {error}")
