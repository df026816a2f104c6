"""The heap that a measurement keeps: freed memory is not mapped anew, and afterwards it is again."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest

from milnce.heap import kept_heap

pytestmark = pytest.mark.alone

_BYTES = 48 * 2**20  # more than glibc ever lets itself learn to keep


def faults() -> int:
    """Return the pages that filling a large block, and freeing it, takes from the kernel."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    _ = b"1" * _BYTES  # not an array, which NumPy asks huge pages for
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def mapped_mib() -> float:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_memory_is_kept_in_the_block_and_given_back_at_its_end() -> None:
    faults()
    anew = faults()
    with kept_heap() as kept:
        faults()
        held = mapped_mib()
        again = faults()
    assert kept
    assert again < anew / 10
    assert mapped_mib() < held - 40
    assert faults() > anew / 2
    assert anew * resource.getpagesize() > _BYTES / 2


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_an_error_gives_it_back_too() -> None:
    with pytest.raises(KeyError), kept_heap():
        raise KeyError
    faults()
    assert faults() * resource.getpagesize() > _BYTES / 2


@pytest.mark.parametrize("told", [None, (1, 0), (0, 1)])
def test_a_library_that_cannot_be_told_is_not_said_to_keep_it(
    monkeypatch: pytest.MonkeyPatch, told: tuple[int, int] | None
) -> None:
    answers = list(told or ())
    trims: list[int] = []
    calls = {"mallopt": lambda *_: answers.pop(0) if answers else 1, "malloc_trim": trims.append}
    library = SimpleNamespace(**(calls if told else {}))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    with kept_heap() as kept:
        assert not kept
    assert trims == ([0] if told else [])
