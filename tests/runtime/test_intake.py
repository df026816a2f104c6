"""What a backend on a GPU is given: when arrays there may be read, and who may still come in while it is closed."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers.doubling import Foreign, floats
from milnce.backends.intake import Arrivals, check_values, room
from milnce.backends.layouts import Layout
from milnce.cuda import Cuda
from milnce.errors import BackendError, DeviceMemoryError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers.fake_cuda import FakeCuda


@pytest.fixture
def arrivals(fake: FakeCuda) -> Iterator[Arrivals]:
    del fake
    made = Arrivals(Cuda())
    yield made
    made.close()


def test_host_arrays_need_nothing_of_the_gpu(fake: FakeCuda, arrivals: Arrivals) -> None:
    before = len(fake.calls)
    feeds = {"a": floats(2), "b": floats(3)}
    with ExitStack() as resources:
        arrays, arrived = arrivals.receive(feeds, None, resources)
    assert arrived is None
    assert all(arrays[name] is feeds[name] for name in "ab")
    assert len(fake.calls) == before


@pytest.mark.parametrize("caller", [0, 1, "own"])
def test_what_the_caller_s_stream_holds_comes_before_whatever_arrays_say(
    fake: FakeCuda,
    arrivals: Arrivals,
    caller: Any,  # noqa: ANN401 - a handle or a word
) -> None:
    cuda, found = Cuda(), np.zeros((4, 5), np.float32)
    with cuda.stream() as own, cuda.stream() as quiet, cuda.stream() as reader, ExitStack() as resources:
        handle = own.handle if caller == "own" else caller
        given = Foreign(fake, floats(4), stream=handle)
        given.stream = quiet.handle  # where nothing of it is
        arrays, arrived = arrivals.receive({"a": given}, handle, resources)
        assert arrived is not None
        reader.wait(arrived)
        cuda.download(found.ctypes.data, arrays["a"].pointer, found.nbytes, reader)  # type: ignore[union-attr]
        reader.synchronize()
    np.testing.assert_array_equal(found, floats(4))


def test_closing_waits_for_who_is_inside_and_lets_nobody_in(fake: FakeCuda) -> None:
    arrivals = Arrivals(Cuda())
    inside, go_on, ends = threading.Event(), threading.Event(), []

    class Slow(Foreign):
        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            inside.set()
            assert go_on.wait(10)
            return super().__cuda_array_interface__

    def visit() -> None:
        with ExitStack() as resources:
            ends.append(arrivals.receive({"a": slow}, None, resources)[1])

    slow = Slow(fake, floats(1), late=False)
    visiting, closing = (
        threading.Thread(target=visit, daemon=True),
        threading.Thread(target=arrivals.close, daemon=True),
    )
    visiting.start()
    assert inside.wait(10)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    given = Foreign(fake, floats(1), late=False)
    with ExitStack() as resources, pytest.raises(BackendError, match="closed while in use"):
        arrivals.receive({"a": given}, None, resources)
    go_on.set()
    visiting.join(10)
    closing.join(10)
    assert not closing.is_alive()
    assert len(ends) == 1
    arrivals.close()


def test_who_is_refused_is_not_waited_for(arrivals: Arrivals) -> None:
    with (
        ExitStack() as resources,
        pytest.raises(InputError, match=r"a: a numpy.ndarray or an array on the GPU expected"),
    ):
        arrivals.receive({"a": [1]}, None, resources)
    arrivals.close()


def test_ids_are_held_against_the_table_and_the_dtype_that_holds_them() -> None:
    wide, narrow = (Layout.of({"t": (2, 2)}, {"t": dtype}) for dtype in ("int64", "int32"))
    ids = np.array([[0, 5], [1, 2]])
    check_values({"t": ids}, narrow, 6)
    check_values({"t": ids}, wide, None)
    check_values({"t": ids.astype(np.float32)}, wide, 3)  # numbers are no ids
    for limit, held, value, most in ((5, wide, 5, 4), (None, narrow, 2**31, 2**31 - 1), (5, narrow, -3, 4)):
        wrong = ids.copy()
        wrong[0, 1] = value
        with pytest.raises(
            InputError, match=rf"t: id {value} given; ids are 0 \(padding\) to {most}, as the tokenizer"
        ):
            check_values({"t": wrong}, held, limit)


def test_room_for_results_is_freed_unless_it_is_taken_over(fake: FakeCuda) -> None:
    cuda, layout = Cuda(), Layout.of({"a": (8, 3), "b": (8, 5)}, {"a": "float32", "b": "float16"})
    with ExitStack() as on_error:
        found = room(cuda, 21, layout, on_error, stream=7)
        assert [(array.shape, array.dtype.name, array.stream) for array in found.values()] == [
            ((21, 3), "float32", 7),
            ((21, 5), "float16", 7),
        ]
        assert cuda.device_bytes == 21 * (3 * 4 + 5 * 2)
    assert cuda.device_bytes == 0
    with ExitStack() as on_error:
        found = room(cuda, 2, layout, on_error, stream=None)
        on_error.pop_all()
    assert cuda.device_bytes == 2 * (3 * 4 + 5 * 2)
    fake.fail("cudaMalloc", after=1)
    with pytest.raises(DeviceMemoryError), ExitStack() as on_error:
        room(cuda, 2, layout, on_error, stream=None)
    assert cuda.device_bytes == 2 * (3 * 4 + 5 * 2)
    del found
