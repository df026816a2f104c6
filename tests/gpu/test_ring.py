"""The ring of slots on a real GPU: any batch, overlapped, from many threads, with little memory, and closed at work."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from milnce.backends import CudaOptions
from milnce.errors import BackendError, DeviceMemoryError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from helpers.gpu_models import Opener
    from milnce.backends import Backend
    from milnce.bundle import Bundle
    from milnce.cuda import Cuda

    Outputs = dict[str, NDArray[Any]]

MIB = 2**20
# Two batch sizes may take two kernels, which add in another order.
SAME = 1e-3


def one_by_one(backend: Backend, clips: NDArray[np.uint8]) -> Outputs:
    rows = [backend.run({"video": clip[None]}) for clip in clips]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def assert_same(found: Outputs, expected: Outputs, rows: slice | NDArray[np.intp] = slice(None)) -> None:
    assert found.keys() == expected.keys()
    for name, values in found.items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(values / scale, expected[name][rows] / scale, rtol=SAME, atol=SAME, err_msg=name)


def test_every_batch_size_gives_the_rows_of_single_clips(opened: Opener, clips: NDArray[np.uint8]) -> None:
    with opened() as backend:
        expected = one_by_one(backend, clips)
        assert np.isfinite(expected["video_embedding"]).all()
        # Clips differ, so that rows in a wrong order cannot pass.
        assert np.abs(expected["video_embedding"][1:] - expected["video_embedding"][:-1]).max(axis=1).min() > 0
        for count in range(1, len(clips) + 1):
            found = backend.run({"video": clips[:count]})
            assert len(found["video_embedding"]) == count
            assert_same(found, expected, slice(count))


def test_a_row_does_not_depend_on_its_batch(opened: Opener, clips: NDArray[np.uint8]) -> None:
    generator = np.random.default_rng(0)
    with opened() as backend:
        expected = backend.run({"video": clips})
        for _ in range(3):
            order = generator.permutation(len(clips))
            assert_same(backend.run({"video": clips[order]}), expected, order)


def test_a_stream_of_twenty_batches_gives_what_runs_one_by_one_give(opened: Opener, clips: NDArray[np.uint8]) -> None:
    sizes = [1, 8, 3, 8, 8, 2, 5, 8, 4, 70, 1, 1, 8, 8, 7, 6, 8, 16, 9, 8]
    batches = [np.roll(clips, turn, axis=0)[:size] for turn, size in enumerate(sizes)]
    with opened() as backend:
        expected = [backend.run({"video": batch}) for batch in batches]
        for _ in range(2):
            streamed = list(backend.stream({"video": batch} for batch in batches))
            assert len(streamed) == 20
            for found, wanted in zip(streamed, expected, strict=True):
                assert_same(found, wanted)


def test_futures_come_true_while_arrays_are_reused(opened: Opener, clips: NDArray[np.uint8]) -> None:
    with opened() as backend:
        expected = one_by_one(backend, clips[:12])
        futures = []
        array = np.empty_like(clips[:1])
        for clip in clips[:12]:
            array[0] = clip
            futures.append(backend.submit({"video": array}))
            array[:] = 0  # the batch is in pinned memory by now
        for row, future in enumerate(futures):
            assert_same(future.result(timeout=60), expected, slice(row, row + 1))


def test_many_threads_share_one_backend(opened: Opener, clips: NDArray[np.uint8]) -> None:
    with opened() as backend, ThreadPoolExecutor(16) as threads:
        expected = one_by_one(backend, clips)

        def work(turn: int) -> None:
            size, first = turn % 11 + 1, 7 * turn % 50
            rows = slice(first, first + size)
            found = backend.run({"video": clips[rows]})
            assert_same(found, expected, rows)

        list(threads.map(work, range(160)))


def test_the_same_batch_gives_the_same_bits(opened: Opener, clips: NDArray[np.uint8]) -> None:
    with opened() as backend:
        backend.run({"video": clips[:8]})  # what is captured into a graph later runs directly at first
        first = backend.run({"video": clips[:8]})
        for _ in range(50):
            again = backend.run({"video": clips[:8]})
            assert all(np.array_equal(again[name], first[name]) for name in first)


def test_text_runs_beside_video(opened: Opener, bundle: Bundle, clips: NDArray[np.uint8]) -> None:
    rows, words = bundle.manifest.vocabulary.words + 1, bundle.manifest.vocabulary.max_words
    tokens = np.random.default_rng(0).integers(0, rows, (33, words))
    with opened() as video, opened("text") as text, ThreadPoolExecutor(2) as threads:
        alone = [video.run({"video": clips[:8]}), text.run({"tokens": tokens})]
        for _ in range(10):
            together = [
                threads.submit(video.run, {"video": clips[:8]}),
                threads.submit(text.run, {"tokens": tokens}),
            ]
            for found, wanted in zip(together, alone, strict=True):
                assert_same(found.result(timeout=60), wanted)


def test_arrays_of_any_strides_are_taken(opened: Opener, clips: NDArray[np.uint8]) -> None:
    with opened() as backend:
        expected = backend.run({"video": clips[:8:2]})
        assert_same(backend.run({"video": np.asfortranarray(clips[:8:2])}), expected)
        mirrored = np.ascontiguousarray(clips[:4, :, :, ::-1])
        assert_same(backend.run({"video": clips[:4, :, :, ::-1]}), backend.run({"video": mirrored}))


def test_wrong_arrays_are_refused_and_right_ones_work_after(opened: Opener, clips: NDArray[np.uint8]) -> None:
    with opened() as backend:
        expected = backend.run({"video": clips[:2]})
        for wrong, words in (
            (clips[:0], "batch is 0"),
            (clips[:2].astype(np.float32), "dtype float32 given, uint8 expected"),
            (clips[:2, :, :, :, :2], "axis 4 is 2"),
            (clips[0], "rank 4 given"),
        ):
            with pytest.raises(InputError, match=words):
                backend.run({"video": wrong})
        with pytest.raises(InputError, match="inputs"):
            backend.run({"clips": clips[:2]})
        assert_same(backend.run({"video": clips[:2]}), expected)


def test_memory_stays_as_declared(opened: Opener, clips: NDArray[np.uint8]) -> None:
    with opened() as backend:
        backend.run({"video": clips})
        used = backend.device_bytes, backend.pinned_bytes
        for size in (1, 8, 70, 3):
            list(backend.stream({"video": clips[:size]} for _ in range(8)))
        assert (backend.device_bytes, backend.pinned_bytes) == used
    with opened(options=CudaOptions(pinned_limit_bytes=used[1])) as limited:
        limited.run({"video": clips})
        assert limited.pinned_bytes <= used[1]
    with opened(options=CudaOptions(pinned_limit_bytes=used[1] // 4)) as limited:
        with pytest.raises(DeviceMemoryError, match="would pass the declared limit"):
            limited.run({"video": clips})
        assert len(limited.run({"video": clips[:1]})["video_embedding"]) == 1


def test_smaller_batches_work_when_the_gpu_is_full(opened: Opener, clips: NDArray[np.uint8], cuda: Cuda) -> None:
    with opened() as large:
        large.run({"video": clips})
        needed = large.device_bytes
    with opened() as backend, ExitStack() as ballast:
        # Every slot has run a single clip, directly and as a graph, before the GPU is full.
        expected = one_by_one(backend, clips[:12])
        spare = (needed - backend.device_bytes) // 2
        assert spare > 0
        fill(cuda, ballast, spare)
        with pytest.raises(DeviceMemoryError, match="bytes of device memory"):
            backend.run({"video": clips})
        assert_same(one_by_one(backend, clips[:12]), expected)
        ballast.close()
        assert_same(one_by_one(backend, clips[:12]), expected)
        assert len(backend.run({"video": clips})["video_embedding"]) == len(clips)


def fill(cuda: Cuda, ballast: ExitStack, spare: int) -> None:
    """Take the GPU's memory but for `spare` bytes, in blocks as large as can be had."""
    block = cuda.memory()[0]
    while block >= MIB // 16:
        block = min(block, cuda.memory()[0] - spare)
        try:
            ballast.enter_context(cuda.device_buffer(max(block, 0)))
        except DeviceMemoryError:
            block //= 2
        if cuda.memory()[0] <= spare:
            return


def test_closing_at_work_answers_every_future(opened: Opener, clips: NDArray[np.uint8]) -> None:
    with opened() as backend, ThreadPoolExecutor(1) as threads:
        expected = backend.run({"video": clips[:8]})
        futures = [backend.submit({"video": clips[:8]}) for _ in range(3)]
        more = threads.submit(lambda: [backend.run({"video": clips[:8]}) for _ in range(200)])
        backend.close()
        for future in futures:
            assert_same(future.result(timeout=60), expected)
        with pytest.raises(BackendError, match="closed"):
            more.result(timeout=60)
        with pytest.raises(BackendError, match="closed"):
            backend.run({"video": clips[:1]})
