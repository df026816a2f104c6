"""The ring of slots: who holds what, growth, interruption and memory, over a simulated GPU that is lazy."""

from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cuda.bindings.runtime import cudaError_t

from milnce.backends.layouts import Bucket, Capacity, Layout
from milnce.backends.slots import Ring
from milnce.cuda import Cuda
from milnce.errors import BackendError, CudaError, DeviceMemoryError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers.fake_cuda import FakeCuda


@pytest.fixture
def ring(fake: FakeCuda) -> Iterator[Ring]:
    del fake
    made = Ring(Cuda(), 3)
    yield made
    made.close()


def bucket(rows: int, *, scratch: int = 0) -> Bucket:
    return Bucket(
        rows,
        0,
        Layout.of({"in": (rows, 256)}, {"in": "uint8"}),
        Layout.of({"out": (rows, 1)}, {"out": "int64"}),
        scratch,
    )


def in_thread(work: Callable[[], object]) -> tuple[Thread, list[object]]:
    results: list[object] = []

    def run() -> None:
        try:
            results.append(work())
        except BackendError as error:
            results.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    return thread, results


def test_a_slot_is_held_until_its_holder_gives_it_back(ring: Ring) -> None:
    holders = [object() for _ in range(4)]
    taken = [ring.acquire(bucket(1), holder) for holder in holders[:3]]
    assert [slot.index for slot in taken] == [0, 1, 2]
    assert ring.try_acquire(bucket(1), holders[3]) is None
    ring.release(holders[3])  # holds nothing
    assert ring.try_acquire(bucket(1), holders[3]) is None
    ring.release(holders[1])
    ring.release(holders[1])
    found = ring.try_acquire(bucket(1), holders[3])
    assert found is taken[1]
    ring.release(holders[1])  # it is another's now
    assert ring.try_acquire(bucket(1), object()) is None


def test_a_larger_bucket_waits_for_every_slot_and_others_wait_for_it(ring: Ring) -> None:
    ring.acquire(bucket(1), "first")
    growing, grown = in_thread(lambda: ring.acquire(bucket(4), "second"))
    growing.join(0.05)
    assert ring.capacity == Capacity(256, 256)
    # A slot is free, and nobody gets it before the one that grows: else growth could wait for ever.
    assert ring.try_acquire(bucket(1), "third") is None
    waiting, waited = in_thread(lambda: ring.acquire(bucket(1), "third"))
    waiting.join(0.05)
    assert not waited
    ring.release("first")
    growing.join(10)
    waiting.join(10)
    assert len(grown) == len(waited) == 1
    assert ring.capacity == Capacity(1024, 256)
    assert {slot.holder for slot in ring.slots} == {"second", "third", None}


def test_of_those_who_need_the_same_growth_one_does_it(ring: Ring, fake: FakeCuda) -> None:
    ring.acquire(bucket(1), "first")
    before = fake.counts["cudaMalloc"]
    threads = [in_thread(lambda name=name: ring.acquire(bucket(8), name)) for name in "abc"]  # type: ignore[misc]
    for thread, _ in threads:
        thread.join(0.05)  # all wait for every slot
    ring.release("first")
    for thread, results in threads:
        thread.join(10)
        assert len(results) == 1
    assert ring.capacity == Capacity(2048, 256)
    for name in "abc":
        ring.release(name)
    ring._grow(bucket(8))  # noqa: SLF001 - as one that saw the former size, and came second
    assert fake.counts["cudaMalloc"] - before == 6


def test_what_is_declared_is_never_passed_not_even_while_growing(fake: FakeCuda) -> None:
    # Exactly what three slots of four rows and the scratch need: growth from two rows must free those first.
    device, pinned = 3 * (1024 + 256) + 512, 3 * (1024 + 256)
    cuda = Cuda(device_limit_bytes=device, pinned_limit_bytes=pinned)
    ring = Ring(cuda, 3)
    ring.acquire(bucket(2, scratch=256), "a")
    ring.release("a")
    ring.acquire(bucket(4, scratch=512), "a")
    ring.release("a")
    assert (cuda.device_bytes, cuda.pinned_bytes) == (device, pinned)
    ring.close()
    assert (cuda.device_bytes, cuda.pinned_bytes) == (0, 0)
    assert fake.memory.used_bytes == [0]


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaHostAlloc", "cudaMemsetAsync", "cudaStreamSynchronize"])
@pytest.mark.parametrize("after", range(4))
def test_growth_that_fails_keeps_what_there_was(ring: Ring, fake: FakeCuda, call: str, after: int) -> None:
    ring.acquire(bucket(2, scratch=512), "a")
    ring.release("a")
    before = (ring.capacity, fake.memory.used_bytes[0], fake.memory.pinned_bytes)
    fake.fail(call, after=after)
    if after < (3 if call not in ("cudaMalloc", "cudaHostAlloc") else 4):
        with pytest.raises(DeviceMemoryError):
            ring.acquire(bucket(4, scratch=512), "a")
        assert (ring.capacity, fake.memory.used_bytes[0], fake.memory.pinned_bytes) == before
    fake.fail(call, times=0)
    assert ring.try_acquire(bucket(2), "a") is not None
    ring.release("a")
    ring.acquire(bucket(4), "a")
    ring.release("a")


def test_growth_that_fails_half_way_frees_that_half_before_it_restores(fake: FakeCuda) -> None:
    cuda = Cuda(device_limit_bytes=3 * 1280 - 1)
    ring = Ring(cuda, 3)
    ring.acquire(bucket(2), "a")
    ring.release("a")
    with pytest.raises(DeviceMemoryError):
        ring.acquire(bucket(4), "a")
    assert ring.capacity == Capacity(512, 256)
    assert cuda.device_bytes == 3 * 768
    ring.close()
    assert fake.leaks() == {}


def test_growth_that_fails_twice_leaves_an_empty_ring_that_works(ring: Ring, fake: FakeCuda) -> None:
    ring.acquire(bucket(2), "a")
    ring.release("a")
    fake.fail("cudaMalloc", times=2)
    with pytest.raises(DeviceMemoryError):
        ring.acquire(bucket(4), "a")
    assert ring.capacity == Capacity()
    assert (ring.cuda.device_bytes, ring.cuda.pinned_bytes) == (0, 0)
    ring.acquire(bucket(2), "a")
    ring.release("a")


def test_what_is_kept_for_addresses_goes_before_them_also_if_one_fails(ring: Ring) -> None:
    closed: list[str] = []

    class Kept:
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            closed.append(self.name)
            assert ring.slots[0].device_inputs.pointer > 0
            if self.name == "failing":
                raise CudaError("cudaGraphExecDestroy failed")

    slot = ring.acquire(bucket(1), "a")
    slot.kept.update({(0,): Kept("one"), (1,): Kept("failing"), (2,): Kept("two")})
    ring.release("a")
    with pytest.raises(CudaError, match="cudaGraphExecDestroy"):
        ring.acquire(bucket(2), "a")
    assert sorted(closed) == ["failing", "one", "two"]
    assert slot.kept == {}
    assert (ring.cuda.device_bytes, ring.cuda.pinned_bytes) == (0, 0)
    ring.acquire(bucket(2), "a")
    ring.release("a")


def test_an_abandoned_slot_is_free_when_the_gpu_is_done_with_it(ring: Ring, fake: FakeCuda) -> None:
    done: list[str] = []
    slot = ring.acquire(bucket(1), "a")
    other = ring.acquire(bucket(1), "b")
    for name, stream in (("copy", slot.stream), ("graph", ring.compute), ("other", other.stream)):
        fake.launch(stream.handle, lambda name=name: done.append(name))  # type: ignore[misc]
    ring.abandon(["a", "nobody"])
    assert sorted(done) == ["copy", "graph"]
    assert (slot.holder, other.holder) == (None, "b")
    # One stream that fails does not keep the others from being waited for, nor the slot.
    fake.launch(ring.compute.handle, lambda: done.append("second"))
    fake.fail("cudaStreamSynchronize", error=cudaError_t.cudaErrorUnknown)
    ring.abandon(["b"])
    assert "second" in done
    assert other.holder is None


def test_abandoning_nothing_waits_for_nothing(ring: Ring, fake: FakeCuda) -> None:
    before = fake.counts["cudaStreamSynchronize"]
    ring.abandon(["nobody"])
    assert fake.counts["cudaStreamSynchronize"] == before


@pytest.mark.parametrize("waiting_for", [bucket(1), bucket(8)], ids=["a slot", "growth"])
def test_draining_wakes_those_who_wait_and_waits_for_those_who_hold(ring: Ring, waiting_for: Any) -> None:  # noqa: ANN401
    for name in "abc":
        ring.acquire(bucket(1), name)
    thread, results = in_thread(lambda: ring.acquire(waiting_for, "d"))
    draining, drained = in_thread(ring.drain)
    thread.join(10)
    assert str(results[0]) == "the model was closed while in use; load it again"
    draining.join(0.05)
    assert not drained
    for name in "abc":
        ring.release(name)
    draining.join(10)
    assert drained
    ring.drain()
    for take in (ring.acquire, ring.try_acquire):
        with pytest.raises(BackendError, match="closed while in use"):
            take(bucket(1), "a")


def test_an_interrupted_drain_can_be_taken_up_again(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    ring.acquire(bucket(1), "a")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ring._condition, "wait_for", interrupted)  # noqa: SLF001 - as Ctrl-C does
        with pytest.raises(KeyboardInterrupt):
            ring.drain()
        for take in (ring.acquire, ring._take_all):  # noqa: SLF001
            with pytest.raises(KeyboardInterrupt):
                take(*((bucket(1), "b") if take == ring.acquire else ("b",)))
    ring.release("a")
    ring.drain()
    assert {slot.holder for slot in ring.slots} == {None}


def test_interrupted_growth_gives_every_slot_back(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    ring.acquire(bucket(1), "a")
    ring.release("a")

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ring, "_allocate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ring.acquire(bucket(2), "a")
    assert {slot.holder for slot in ring.slots} == {None}
    ring.acquire(bucket(2), "a")
    ring.release("a")


def test_fresh_inputs_are_zeros(ring: Ring, fake: FakeCuda) -> None:
    slot = ring.acquire(bucket(2), "a")
    assert not np.any(fake.view(slot.device_inputs.pointer, 512))
    ring.release("a")


def test_closing_twice_frees_once(fake: FakeCuda) -> None:
    ring = Ring(Cuda(), 2)
    ring.acquire(bucket(1, scratch=64), "a")
    ring.release("a")
    held = [ring._scratch, *(slot.device_inputs for slot in ring.slots)]  # noqa: SLF001 - a reference frees nothing
    ring.close()
    ring.close()
    assert len(held) == 3
    assert fake.leaks() == {}
    assert fake.counts["cudaStreamDestroy"] == 3


@pytest.mark.parametrize("call", ["cudaStreamCreateWithFlags", "cudaEventCreateWithFlags"])
@pytest.mark.parametrize("after", range(3))
def test_a_ring_that_cannot_be_made_leaves_nothing(fake: FakeCuda, call: str, after: int) -> None:
    cuda = Cuda()
    fake.fail(call, after=after)
    with pytest.raises(DeviceMemoryError, match=call):
        Ring(cuda, 3)
    assert fake.leaks() == {}
