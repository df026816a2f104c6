"""How batches get into a slot: where their tensors lie, and copies of large arrays by several threads."""

from __future__ import annotations

import threading
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers.doubling import Foreign
from milnce.backends.batches import Copier, Part, upload
from milnce.backends.layouts import Bucket, Layout
from milnce.backends.slots import Ring
from milnce.cuda import Cuda
from milnce.device_arrays import as_device_array

if TYPE_CHECKING:
    from helpers.doubling import Floats
    from helpers.fake_cuda import FakeCuda


def test_tensors_lie_one_after_the_other_on_256_bytes() -> None:
    layout = Layout.of({"a": (3, 5), "b": (1, 300), "c": (2,)}, {"a": "float32", "b": "uint8", "c": "int64"})
    assert layout.offsets == {"a": 0, "b": 256, "c": 768}
    assert layout.nbytes == 1024
    assert [layout.row_bytes(name) for name in "abc"] == [20, 300, 8]


@pytest.mark.parametrize("on_device", [False, True])
def test_several_inputs_go_each_to_their_place(fake: FakeCuda, *, on_device: bool) -> None:
    ring = Ring(Cuda(), 1)
    shapes, dtypes = {"a": (4, 3), "b": (4, 70), "c": (4,)}, {"a": "float32", "b": "uint8", "c": "int64"}
    layout = Layout.of(shapes, dtypes)
    one = Bucket(4, 0, layout, Layout.of({"out": (4, 1)}, {"out": "int64"}), 0)
    generator, copier = np.random.default_rng(0), Copier()
    arrays = {name: generator.integers(1, 9, (9, *shape[1:])).astype(dtypes[name]) for name, shape in shapes.items()}
    feeds: dict[str, Any] = dict(arrays)
    if on_device:
        given = {name: Foreign(fake, array, late=False) for name, array in arrays.items()}
        feeds = {name: as_device_array(array, ring.cuda, ring.compute) for name, array in given.items()}
    part = Part(one, 5, 3, feeds, None, None)
    slot = ring.acquire(one, part)
    upload(part, slot, copier)
    slot.stream.synchronize()
    for name, array in arrays.items():
        nbytes = 4 * layout.row_bytes(name)
        found = fake.view(slot.device_inputs.pointer + layout.offsets[name], nbytes).view(dtypes[name])
        np.testing.assert_array_equal(found.reshape(shapes[name])[:3], array[5:8])
        assert not found.reshape(shapes[name])[3:].any()
    ring.release(part)
    ring.close()
    copier.close()


@pytest.mark.parametrize("shape", [(2**20,), (5, 2**19 + 3), (2**20 - 1,)])
def test_large_arrays_are_copied_whole(shape: tuple[int, ...]) -> None:
    copier = Copier()
    source = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    destination = np.zeros_like(source)
    copier.copy(destination, source)
    np.testing.assert_array_equal(destination, source)
    wide = np.full((3, 2**18), 7, np.int64)
    narrow = np.zeros(wide.shape, np.int32)
    copier.copy(narrow, wide)
    np.testing.assert_array_equal(narrow, wide)
    copier.close()


def test_large_arrays_that_are_not_contiguous_are_copied_once() -> None:
    copier = Copier()
    source = np.arange(2**22, dtype=np.uint8).reshape(2**11, 2**11)[:, ::-1]
    destination = np.zeros(source.shape, np.uint8)
    tracemalloc.start()
    copier.copy(destination, source)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    np.testing.assert_array_equal(destination, source)
    copier.close()


def test_a_copy_that_fails_on_any_thread_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    copier, copyto = Copier(), np.copyto
    copier._count = 2  # noqa: SLF001 - also on a machine with one core

    def fails_elsewhere(destination: Floats, source: Floats) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError("no memory")
        copyto(destination, source)

    monkeypatch.setattr(np, "copyto", fails_elsewhere)
    with pytest.raises(MemoryError, match="no memory"):
        copier.copy(np.zeros(2**21, np.uint8), np.zeros(2**21, np.uint8))
    copier.close()


def test_an_interrupted_copy_ends_before_its_memory_is_another_s(monkeypatch: pytest.MonkeyPatch) -> None:
    copier = Copier()
    copier._count = 3  # noqa: SLF001 - also on a machine with one core
    main, started, copied = threading.current_thread(), threading.Event(), []

    def copyto(destination: Floats, source: Floats) -> None:
        if threading.current_thread() is main:
            assert started.wait(10)
            raise KeyboardInterrupt
        started.set()
        threading.Event().wait(0.05)
        np.ndarray.__setitem__(destination, ..., source)
        copied.append(len(source))

    monkeypatch.setattr(np, "copyto", copyto)
    array = np.zeros(2**20, np.uint8)
    with pytest.raises(KeyboardInterrupt):
        copier.copy(array.copy(), array)
    assert len(copied) == 2
    copier.close()
