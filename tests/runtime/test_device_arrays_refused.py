"""Arrays of other libraries on the GPU that are refused, and with what words."""

from __future__ import annotations

import ctypes
import gc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers.device_producers import Exported, Interface, interface, numbers
from helpers.fake_cuda import FakeCuda, FakeGpu, install
from milnce.cuda import Cuda
from milnce.device_arrays import as_device_array, is_device_array
from milnce.errors import (
    CudaError,
    InputError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from milnce import dlpack
    from milnce.cuda import Stream


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Simulate two GPUs whose work waits until somebody waits for it; nothing may be wrong or left at the end."""
    fake = install(monkeypatch, policy="lazy", gpus=(FakeGpu("First"), FakeGpu("Second")))
    yield fake
    gc.collect()
    fake.check()


def refused(cuda: Cuda, stream: Stream, given: object) -> str:
    with pytest.raises(InputError) as caught:
        as_device_array(given, cuda, stream, name="video")
    return str(caught.value)


def test_an_array_that_is_not_contiguous_is_refused_with_the_remedy(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.device_buffer(64) as buffer, cuda.stream() as stream:
        array = numbers(fake, buffer.pointer, (2, 4))
        assert refused(cuda, stream, Exported(fake, array[:, :3])) == (
            "video: shape (2, 3) with strides of (16, 4) bytes is not C-contiguous; "
            "make it so with .contiguous() (PyTorch) or ascontiguousarray (CuPy)"
        )
        for shape, strides in (((2, 3), (4, 8)), ((2, 3), (12, -4)), ((2, 3), (0, 4)), ((2, 3), (4,))):
            message = refused(cuda, stream, interface(buffer.pointer, shape, strides=strides))
            assert message.startswith(f"video: shape {shape} with strides of {strides} bytes is not C-contiguous; ")


@pytest.mark.parametrize("by_dlpack", [True, False])
def test_an_array_on_another_gpu_is_refused_by_name(fake: FakeCuda, by_dlpack: bool) -> None:
    cuda, other = Cuda(1), Cuda(0)
    with other.device_buffer(24) as buffer, cuda.stream() as stream:
        given = Exported(fake, numbers(fake, buffer.pointer)) if by_dlpack else interface(buffer.pointer)
        assert refused(cuda, stream, given) == (
            "video: it is on GPU 0, and the model runs on GPU 1 (Second); copy it there, or load the model on its GPU"
        )


def test_an_array_that_lies_where_it_does_not_say_is_refused(fake: FakeCuda) -> None:
    cuda, other = Cuda(0), Cuda(1)
    with other.device_buffer(24) as buffer, cuda.stream() as stream:
        message = refused(cuda, stream, Exported(fake, numbers(fake, buffer.pointer), device=0))
        assert message.startswith("video: it is on GPU 1, and the model runs on GPU 0 (First); ")


def test_host_memory_behind_an_interface_is_refused(fake: FakeCuda) -> None:
    cuda = Cuda()
    host = np.zeros((2, 3), np.float32)
    with cuda.pinned_buffer(24) as pinned, cuda.stream() as stream:
        for given in (
            interface(host.ctypes.data),
            interface(pinned.pointer),
            interface(0),
            interface(0x10),
            Exported(fake, host),
        ):
            assert refused(cuda, stream, given) == (
                "video: it is in host memory, behind an interface for arrays on the GPU; give a numpy.ndarray"
            )


@pytest.mark.parametrize(
    ("typestr", "name"),
    [
        ("|b1", "bool"),
        ("<V2", "bfloat16"),
        ("<c8", "complex64"),
        (">f4", ">f4"),
        ("|S4", "|S4"),
        ("<M8[s]", "datetime64[s]"),
        ("|O", "object"),
    ],
)
def test_other_dtypes_are_refused_by_name(fake: FakeCuda, typestr: str, name: str) -> None:
    cuda = Cuda()
    with cuda.device_buffer(64) as buffer, cuda.stream() as stream:
        assert refused(cuda, stream, interface(buffer.pointer, typestr=typestr)) == (
            f"video: its dtype is {name}; integers or floating-point numbers of this machine expected"
        )
    assert fake.counts["cudaEventRecord"] == 0


@pytest.mark.parametrize(
    ("code", "bits", "lanes", "name"),
    [
        (4, 16, 1, "bfloat16"),
        (6, 8, 1, "bool8"),
        (5, 64, 1, "complex64"),
        (2, 8, 1, "float8"),
        (0, 4, 1, "int4"),
        (2, 128, 1, "float128"),
        (10, 8, 1, "DLPack type 10, 8"),
        (2, 32, 4, "float32 in vectors of 4"),
    ],
)
def test_other_dtypes_of_dlpack_are_refused_by_name(
    fake: FakeCuda, code: int, bits: int, lanes: int, name: str
) -> None:
    def change(tensor: dlpack.Tensor) -> None:
        tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes = code, bits, lanes

    cuda = Cuda()
    with cuda.device_buffer(24) as buffer, cuda.stream() as stream:
        given = Exported(fake, numbers(fake, buffer.pointer))
        given.edit = change
        assert refused(cuda, stream, given) == (
            f"video: its dtype is {name}; integers or floating-point numbers of 8 to 64 bits expected"
        )


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"data": 5}, "TypeError"),
        ({"data": ("here", False)}, "ValueError"),
        ({"data": ()}, "IndexError"),
        ({"shape": None}, "TypeError"),
        ({"shape": ("a", 3)}, "ValueError"),
        ({"typestr": "nonsense"}, "TypeError"),
        ({"strides": 4}, "TypeError"),
        ({"stream": "main"}, "ValueError"),
    ],
)
def test_an_interface_that_is_not_valid_is_refused(fake: FakeCuda, fields: dict[str, Any], problem: str) -> None:
    cuda = Cuda()
    with cuda.device_buffer(24) as buffer, cuda.stream() as stream:
        given = interface(buffer.pointer)
        given.__cuda_array_interface__.update(fields)
        message = refused(cuda, stream, given)
        assert message.startswith(
            f"video: the __cuda_array_interface__ of this helpers.device_producers.Interface is not valid ({problem}: "
        )
    assert fake.violations == []


@pytest.mark.parametrize("missing", ["data", "shape", "typestr"])
def test_an_interface_that_is_not_whole_is_refused(fake: FakeCuda, missing: str) -> None:
    cuda = Cuda()
    with cuda.device_buffer(24) as buffer, cuda.stream() as stream:
        given = interface(buffer.pointer)
        del given.__cuda_array_interface__[missing]
        assert refused(cuda, stream, given).endswith(f" is not valid (KeyError: '{missing}')")
    assert fake.violations == []


def test_something_else_than_an_interface_is_refused(fake: FakeCuda) -> None:
    cuda = Cuda()
    given = Interface()
    given.__cuda_array_interface__ = 7
    with cuda.stream() as stream:
        assert "is not valid (TypeError: " in refused(cuda, stream, given)
        assert refused(cuda, stream, 7) == (
            "video: this builtins.int cannot be exported: 'int' object has no attribute '__cuda_array_interface__'"
        )
    assert fake.violations == []


def test_a_negative_size_is_refused(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.device_buffer(24) as buffer, cuda.stream() as stream:
        assert refused(cuda, stream, interface(buffer.pointer, (-2, -3))) == "video: its shape is (-2, -3)"
    assert fake.violations == []


def test_masked_elements_are_refused(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.device_buffer(24) as buffer, cuda.stream() as stream:
        given = interface(buffer.pointer, mask=interface(buffer.pointer))
        assert refused(cuda, stream, given) == (
            "video: this helpers.device_producers.Interface has a mask; fill the masked elements first"
        )
    assert fake.violations == []


@pytest.mark.parametrize("named", [0, -1])
def test_a_stream_that_the_interface_forbids_is_refused(fake: FakeCuda, named: int) -> None:
    cuda = Cuda()
    with cuda.device_buffer(24) as buffer, cuda.stream() as stream:
        assert refused(cuda, stream, interface(buffer.pointer, stream=named)) == (
            f"video: the __cuda_array_interface__ of this helpers.device_producers.Interface names stream {named}, "
            "which is forbidden there: 1 is the default stream, and larger numbers are handles"
        )
    assert fake.violations == []


def test_a_stream_that_is_none_is_an_error_of_cuda(fake: FakeCuda) -> None:
    cuda = Cuda()
    with (
        cuda.device_buffer(24) as buffer,
        cuda.stream() as stream,
        pytest.raises(CudaError, match=r"^cudaEventRecord failed: cudaErrorInvalidResourceHandle \(400\)"),
    ):
        as_device_array(interface(buffer.pointer, stream=0xBAD0), cuda, stream)
    assert fake.leaks() == {}
    fake.violations.clear()


def test_a_library_that_refuses_to_export_is_quoted(fake: FakeCuda) -> None:
    class NeedsGradient(Exported):
        def __dlpack__(self, *, stream: int) -> object:
            raise BufferError(f"Can't export tensors that require gradient (asked for stream {stream})")

    class Property:
        @property
        def __cuda_array_interface__(self) -> object:
            raise RuntimeError("use var.detach()")

    cuda = Cuda()
    with cuda.device_buffer(24) as buffer, cuda.stream() as stream:
        given = NeedsGradient(fake, numbers(fake, buffer.pointer))
        assert is_device_array(given)
        assert refused(cuda, stream, given).endswith(
            "NeedsGradient cannot be exported: Can't export tensors that require gradient "
            f"(asked for stream {stream.handle})"
        )
        assert is_device_array(Property())
        assert refused(cuda, stream, Property()).endswith("Property cannot be exported: use var.detach()")


def test_a_capsule_of_another_kind_is_refused(fake: FakeCuda) -> None:
    class Versioned(Exported):
        def __dlpack__(self, *, stream: int) -> object:
            del stream
            return ctypes.pythonapi.PyCapsule_New

    cuda = Cuda()
    with cuda.device_buffer(24) as buffer, cuda.stream() as stream:
        message = refused(cuda, stream, Versioned(fake, numbers(fake, buffer.pointer)))
        assert message.startswith("video: its __dlpack__ gives <_FuncPtr object at ")
        assert message.endswith(">, where a capsule named 'dltensor' is expected")


def test_an_array_of_another_device_is_refused(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.stream() as stream:
        assert refused(cuda, stream, Exported(fake, np.zeros(3), kind=10)) == (
            "video: this helpers.device_producers.Exported is not on an NVIDIA GPU (its DLPack device is 10)"
        )
