"""Arrays of other libraries on the GPU: which are taken, and after which streams; and what is handed out."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cuda.bindings import runtime

from helpers.device_producers import Exported, Interface, interface, numbers
from helpers.fake_cuda import FakeCuda, FakeGpu, install, reads, writes
from milnce import dlpack
from milnce.cuda import Cuda
from milnce.device_arrays import DeviceArray, as_device_array, is_device_array
from milnce.errors import (
    InputError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from milnce.cuda import Stream

LEGACY, PER_THREAD = 1, 2


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Simulate two GPUs whose work waits until somebody waits for it; nothing may be wrong or left at the end."""
    fake = install(monkeypatch, policy="lazy", gpus=(FakeGpu("First"), FakeGpu("Second")))
    yield fake
    gc.collect()
    fake.check()


def fill_later(fake: FakeCuda, stream: int, pointer: int) -> None:
    """Enqueue a kernel that writes 1 to 6 at `pointer`."""

    def kernel() -> None:
        numbers(fake, pointer)[:] = [[1, 2, 3], [4, 5, 6]]

    assert fake.launch(stream, kernel, accesses=[writes(pointer, 24)]) == 0


def downloaded(fake: FakeCuda, cuda: Cuda, array: DeviceArray, stream: Stream) -> list[list[float]]:
    """Return what a consumer on `stream` reads of `array`."""
    with cuda.pinned_buffer(24) as pinned:
        cuda.download(pinned.pointer, array.pointer, 24, stream)
        stream.synchronize()
        return [[float(number) for number in row] for row in numbers(fake, pinned.pointer)]


@pytest.mark.parametrize("producer_stream", [None, LEGACY, PER_THREAD, "own"])
def test_an_interface_is_read_after_the_stream_it_names(fake: FakeCuda, producer_stream: int | str | None) -> None:
    cuda = Cuda()
    with cuda.device_buffer(24) as buffer, cuda.stream() as stream, cuda.stream() as own:
        named = own.handle if producer_stream == "own" else producer_stream
        # Numba and PyCUDA name no stream for arrays that are written in the default stream.
        fill_later(fake, LEGACY if named is None else int(named), buffer.pointer)
        given = interface(buffer.pointer, stream=named)
        taken = as_device_array(given, cuda, stream)
        assert (taken.pointer, taken.shape, taken.dtype.name, taken.device) == (buffer.pointer, (2, 3), "float32", 0)
        assert taken.owner is given
        assert downloaded(fake, cuda, taken, stream) == [[1, 2, 3], [4, 5, 6]]


def test_an_interface_of_the_second_version_is_read_after_the_default_stream(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.device_buffer(24) as buffer, cuda.stream() as stream:
        fill_later(fake, LEGACY, buffer.pointer)
        given = Interface(data=(buffer.pointer, False), shape=(2, 3), typestr="<f4", version=2)
        del given.__cuda_array_interface__["stream"], given.__cuda_array_interface__["strides"]
        assert downloaded(fake, cuda, as_device_array(given, cuda, stream), stream) == [[1, 2, 3], [4, 5, 6]]


def test_nothing_is_waited_for_that_is_in_the_consumers_own_stream(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.device_buffer(24) as buffer, cuda.stream() as stream:
        as_device_array(interface(buffer.pointer, stream=stream.handle), cuda, stream)
    assert fake.counts["cudaEventRecord"] == fake.counts["cudaStreamWaitEvent"] == 0


def test_a_dlpack_array_is_read_after_the_stream_of_its_library(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.device_buffer(24) as buffer, cuda.stream() as stream, cuda.stream() as theirs:
        fill_later(fake, theirs.handle, buffer.pointer)
        given = Exported(fake, numbers(fake, buffer.pointer), stream=theirs.handle)
        fake.cudaSetDevice(1)  # as another part of the program may have left it
        taken = as_device_array(given, cuda, stream)
        assert given.consumers == [stream.handle]
        assert (taken.pointer, taken.shape, taken.dtype.name, taken.device) == (buffer.pointer, (2, 3), "float32", 0)
        assert downloaded(fake, cuda, taken, stream) == [[1, 2, 3], [4, 5, 6]]


def test_the_default_stream_is_named_as_dlpack_wants_it(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.device_buffer(24) as buffer:
        given = Exported(fake, numbers(fake, buffer.pointer))
        as_device_array(given, cuda, cuda.borrowed_stream(0))
        assert given.consumers == [LEGACY]


def test_dlpack_is_preferred_since_it_orders_the_streams(fake: FakeCuda) -> None:
    class Both(Exported):  # as PyTorch's tensors, whose interface names no stream
        @property
        def __cuda_array_interface__(self) -> object:
            raise AssertionError("not asked for")

    cuda = Cuda()
    with cuda.device_buffer(24) as buffer, cuda.stream() as stream:
        given = Both(fake, numbers(fake, buffer.pointer))
        assert is_device_array(given)
        assert as_device_array(given, cuda, stream).pointer == buffer.pointer


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64", "float16", "float32", "float64"])
def test_the_dtypes_of_numbers_are_taken_either_way(fake: FakeCuda, dtype: str) -> None:
    cuda = Cuda()
    with cuda.device_buffer(64) as buffer, cuda.stream() as stream:
        array = numbers(fake, buffer.pointer, (2, 4), dtype)
        for given in (Exported(fake, array), interface(buffer.pointer, (2, 4), array.dtype.str)):
            taken = as_device_array(given, cuda, stream)
            assert (taken.dtype.name, taken.shape, taken.nbytes) == (dtype, (2, 4), array.nbytes)


def test_a_read_only_array_is_taken(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.device_buffer(24) as buffer, cuda.stream() as stream:
        given = Interface(data=(buffer.pointer, True), shape=(2, 3), typestr="<f4")
        assert as_device_array(given, cuda, stream).pointer == buffer.pointer
    assert fake.counts["cudaMemcpyAsync"] == 0


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((2, 3), (12, 4)),  # PyCUDA always gives them
        ((1, 3), (999, 4)),  # an axis of one element is never stepped along
        ((2, 1, 3), (12, -8, 4)),
        ((), ()),
    ],
)
def test_strides_of_a_contiguous_array_are_taken(
    fake: FakeCuda, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    cuda = Cuda()
    with cuda.device_buffer(24) as buffer, cuda.stream() as stream:
        assert as_device_array(interface(buffer.pointer, shape, strides=strides), cuda, stream).shape == shape
    assert fake.leaks() == {}


@pytest.mark.parametrize("pointer", [0, None])
@pytest.mark.parametrize("strides", [None, (0, 4)])
def test_an_array_without_elements_needs_no_memory(
    fake: FakeCuda, pointer: int | None, strides: tuple[int, ...] | None
) -> None:
    cuda = Cuda()
    with cuda.stream() as stream:
        given = Interface(data=(pointer, False), shape=(0, 3), typestr="|u1", strides=strides)
        taken = as_device_array(given, cuda, stream)
    assert (taken.pointer, taken.shape, taken.nbytes, len(taken)) == (0, (0, 3), 0, 0)
    assert fake.counts["cudaPointerGetAttributes"] == 0


def test_an_offset_in_bytes_counts(fake: FakeCuda) -> None:
    def shift(tensor: dlpack.Tensor) -> None:
        tensor.byte_offset = 8

    cuda = Cuda()
    with cuda.device_buffer(32) as buffer, cuda.stream() as stream:
        given = Exported(fake, numbers(fake, buffer.pointer))
        given.edit = shift
        assert as_device_array(given, cuda, stream).pointer == buffer.pointer + 8


def test_managed_memory_is_taken(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.device_buffer(24) as buffer, cuda.stream() as stream:
        given = Exported(fake, numbers(fake, buffer.pointer), kind=13)
        assert is_device_array(given)
        assert as_device_array(given, cuda, stream).pointer == buffer.pointer


def test_the_array_and_its_capsule_live_as_long_as_what_was_made_of_them(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.device_buffer(24) as buffer, cuda.stream() as stream:
        memory = np.asarray(numbers(fake, buffer.pointer)[:])
        exported, seen = Exported(fake, memory), interface(buffer.pointer)
        lives: list[weakref.ref[Any]] = [weakref.ref(memory), weakref.ref(exported), weakref.ref(seen)]
        taken = [as_device_array(exported, cuda, stream), as_device_array(seen, cuda, stream)]
        exported.array = np.zeros(1)  # only the capsule holds the memory now
        del memory, exported, seen
        gc.collect()
        assert [life() is not None for life in lives] == [True] * 3
        taken.clear()
        gc.collect()
        assert [life() for life in lives] == [None] * 3


def test_arrays_on_the_gpu_are_told_from_others(fake: FakeCuda) -> None:
    host = np.zeros(3)
    assert is_device_array(Exported(fake, host, kind=2))
    assert is_device_array(Exported(fake, host, kind=13))
    assert is_device_array(interface(0))
    assert is_device_array(DeviceArray(0, (0,), np.dtype("u1"), device=0, owner=None))
    for kind in (1, 3, 10, 14):  # the CPU, its pinned memory, another maker's GPU
        assert not is_device_array(Exported(fake, host, kind=kind))
    for value in (host, [1.0], 7, None, "array", object(), memoryview(b"")):
        assert not is_device_array(value)
    assert fake.calls == []


def test_an_array_that_does_not_say_one_device_is_judged_by_its_interface() -> None:
    class Sharded:
        def __dlpack_device__(self) -> tuple[int, int]:
            raise ValueError("__dlpack_device__ only supported for unsharded arrays")

    class WithInterface(Sharded):
        __cuda_array_interface__: Any = {"version": 3}  # noqa: RUF012 - as a library writes it

    assert not is_device_array(Sharded())
    assert is_device_array(WithInterface())
    assert not is_device_array(Exported)  # the class itself


def test_a_tensor_of_pytorch_on_the_cpu_is_none() -> None:
    torch = pytest.importorskip("torch")
    assert not is_device_array(torch.zeros(3))
    assert not is_device_array(torch.zeros(3, requires_grad=True))


def test_capsules_of_pytorch_are_read() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(24, dtype=torch.int32).reshape(4, 6)[1:, 2:]
    found = dlpack.read_capsule(tensor.__dlpack__())
    assert found == dlpack.Description(tensor.data_ptr(), (3, 4), (24, 4), "int32")
    with pytest.raises(InputError, match=r"^its dtype is bfloat16; integers or floating-point numbers of 8 to 64 bits"):
        dlpack.read_capsule(torch.zeros(2, dtype=torch.bfloat16).__dlpack__())
    with pytest.raises(InputError, match=r"dltensor_versioned.*, where a capsule named 'dltensor' is expected$"):
        dlpack.read_capsule(tensor.__dlpack__(max_version=(1, 0)))


def test_what_is_handed_out_says_what_it_is(fake: FakeCuda) -> None:
    owner = object()
    array = DeviceArray(0x1000, (2, 3), np.dtype("float16"), device=1, owner=owner)
    assert array.__cuda_array_interface__ == {
        "version": 3,
        "shape": (2, 3),
        "typestr": "<f2",
        "data": (0x1000, False),
        "strides": None,
        "stream": None,
    }
    assert (len(array), array.ndim, array.nbytes, array.device) == (2, 2, 12, 1)
    assert array.owner is owner
    assert repr(array) == "DeviceArray(shape=(2, 3), dtype=float16, device=1)"
    with pytest.raises(TypeError, match=r"^an array without axes has no length$"):
        len(DeviceArray(0x1000, (), np.dtype("u1"), device=0, owner=None))
    assert fake.calls == []


@pytest.mark.parametrize(("stream", "named"), [(None, None), (0, 1), (1, 1), (0x7000, 0x7000)])
def test_what_is_handed_out_names_the_stream_that_completes_it(stream: int | None, named: int | None) -> None:
    array = DeviceArray(0x1000, (2,), np.dtype("u1"), device=0, owner=None, stream=stream)
    assert array.__cuda_array_interface__["stream"] == named


@pytest.mark.parametrize("convert", [np.asarray, np.array, lambda array: np.asarray(array, dtype=np.float64)])
def test_numpy_makes_nothing_of_it_by_itself(convert: Callable[[object], object]) -> None:
    array = DeviceArray(0x1000, (2, 3), np.dtype("float32"), device=0, owner=None)
    with pytest.raises(InputError) as caught:
        convert(array)
    assert str(caught.value) == (
        "DeviceArray(shape=(2, 3), dtype=float32, device=0) is on the GPU; copy_to_host() gives a numpy.ndarray"
    )


@pytest.mark.parametrize("device", [0, 1])
def test_a_copy_on_the_host_waits_for_the_stream_that_completes_it(fake: FakeCuda, device: int) -> None:
    cuda = Cuda(device)
    with cuda.device_buffer(24) as buffer, cuda.stream() as stream:
        fill_later(fake, stream.handle, buffer.pointer)
        array = DeviceArray(
            buffer.pointer, (2, 3), np.dtype("float32"), device=device, owner=buffer, stream=stream.handle
        )
        copy = array.copy_to_host()
        assert copy.tolist() == [[1, 2, 3], [4, 5, 6]]
        assert copy.dtype == np.float32
        assert copy.flags.owndata
        stream.synchronize()
    assert fake.counts["cudaMemcpyAsync"] == 1
    # Into memory that is not pinned, the copy may be under way when the call returns.
    assert fake.counts["cudaStreamSynchronize"] == 2


def test_a_copy_of_a_complete_array_and_of_an_empty_one(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.device_buffer(24) as buffer:
        numbers(fake, buffer.pointer)[:] = 7
        array = DeviceArray(buffer.pointer, (2, 3), np.dtype("float32"), device=0, owner=buffer)
        assert array.copy_to_host().tolist() == [[7, 7, 7], [7, 7, 7]]
    assert DeviceArray(0, (0, 3), np.dtype("float32"), device=0, owner=None).copy_to_host().shape == (0, 3)
    assert fake.leaks() == {}


def test_what_is_handed_out_is_taken_in_again_in_order(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.device_buffer(24) as buffer, cuda.stream() as producer, cuda.stream() as consumer:
        fill_later(fake, producer.handle, buffer.pointer)
        given = DeviceArray(buffer.pointer, (2, 3), np.dtype("float32"), device=0, owner=buffer, stream=producer.handle)
        taken = as_device_array(given, cuda, consumer)
        assert downloaded(fake, cuda, taken, consumer) == [[1, 2, 3], [4, 5, 6]]


def test_the_simulation_sees_a_missing_order(fake: FakeCuda) -> None:
    """Without what `as_device_array` orders, the tests above would fail."""
    cuda = Cuda()
    with cuda.device_buffer(24) as buffer, cuda.stream() as producer, cuda.stream() as consumer:
        fill_later(fake, producer.handle, buffer.pointer)
        fake.launch(consumer.handle, lambda: None, accesses=[reads(buffer.pointer, 24)])
        consumer.synchronize()
        producer.synchronize()
    assert any("race" in problem for problem in fake.violations)
    fake.violations.clear()


def test_the_constants_are_those_of_the_bindings() -> None:
    assert (runtime.cudaStreamLegacy, runtime.cudaStreamPerThread) == (LEGACY, PER_THREAD)
