"""Arrays of other libraries on the GPU: in without a copy, results left there, in the order of the caller's stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers.gpu_producers import PRODUCERS, Producer
from milnce.device_arrays import DeviceArray, as_device_array, is_device_array
from milnce.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    import milnce
    from helpers.gpu_models import Opener
    from milnce.bundle import Bundle
    from milnce.cuda import Cuda


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.needs(name)) for name in PRODUCERS])
def producer(request: pytest.FixtureRequest) -> Producer:
    return PRODUCERS[request.param]()


def numbers(count: int = 64, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((count, 33), dtype=np.float32)


def test_an_array_is_taken_without_a_copy(producer: Producer, cuda: Cuda) -> None:
    host = numbers()
    array = producer.upload(host)
    assert is_device_array(array)
    assert not is_device_array(host)
    with cuda.stream() as stream:
        taken = as_device_array(array, cuda, stream)
        stream.synchronize()
    assert taken.pointer == producer.pointer(array)
    assert (taken.shape, taken.dtype, taken.device) == (host.shape, host.dtype, cuda.info.index)
    np.testing.assert_array_equal(taken.copy_to_host(), host)


def test_a_taken_array_outlives_its_variable(producer: Producer, cuda: Cuda) -> None:
    host = numbers()
    with cuda.stream() as stream:
        taken = as_device_array(producer.upload(host), cuda, stream)
        others = [producer.upload(numbers(seed=seed)) for seed in range(1, 20)]
        stream.synchronize()
    np.testing.assert_array_equal(taken.copy_to_host(), host)
    assert len(others) == 19


def test_integers_and_halves_keep_their_dtype(producer: Producer, cuda: Cuda) -> None:
    for dtype in (np.uint8, np.int32, np.int64, np.float16, np.float64):
        host = np.arange(24, dtype=dtype).reshape(2, 3, 4)
        with cuda.stream() as stream:
            taken = as_device_array(producer.upload(host), cuda, stream)
            stream.synchronize()
        assert taken.dtype == dtype
        np.testing.assert_array_equal(taken.copy_to_host(), host)


def test_an_array_with_gaps_is_refused(producer: Producer, cuda: Cuda) -> None:
    gaps = producer.not_contiguous(producer.upload(numbers()))
    if gaps is not None:
        with cuda.stream() as stream, pytest.raises(InputError, match="is not C-contiguous"):
            as_device_array(gaps, cuda, stream, name="video")


def test_what_is_read_comes_after_what_the_producer_enqueued(producer: Producer, cuda: Cuda) -> None:
    host = numbers(count=4096)
    with producer.stream():
        array, source = producer.upload(np.zeros_like(host)), producer.upload(host)
        with cuda.stream() as stream, cuda.pinned_buffer(host.nbytes) as received:
            producer.write_late(array, source)
            taken = as_device_array(array, cuda, stream)
            cuda.download(received.pointer, taken.pointer, host.nbytes, stream)
            stream.synchronize()
            np.testing.assert_array_equal(received.array("float32", host.shape), host)


def test_a_result_is_handed_out_without_a_copy(producer: Producer, cuda: Cuda) -> None:
    host = numbers()
    with cuda.stream() as stream, cuda.pinned_buffer(host.nbytes) as staged:
        buffer = cuda.device_buffer(host.nbytes)
        staged.array("float32", host.shape)[:] = host
        cuda.upload(buffer.pointer, staged.pointer, host.nbytes, stream)
        stream.synchronize()
    result = DeviceArray(buffer.pointer, host.shape, np.dtype(np.float32), device=cuda.info.index, owner=buffer)
    view = producer.view(result)
    assert producer.pointer(view) == result.pointer
    np.testing.assert_array_equal(producer.download(view), host)


def test_clips_on_the_gpu_give_what_clips_on_the_host_give(
    opened: Opener, producer: Producer, clips: NDArray[np.uint8]
) -> None:
    with opened() as backend:
        for count in (1, 3, 8, 21):
            expected = backend.run({"video": clips[:count]})
            array = producer.upload(clips[:count])
            found = backend.run({"video": array})
            for name, values in expected.items():
                assert isinstance(found[name], np.ndarray)
                np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-3 * np.abs(values).max())
            there = backend.run({"video": array}, on_device=True)
            for name in expected:
                assert isinstance(there[name], DeviceArray)
                view = producer.view(there[name])
                assert producer.pointer(view) == there[name].pointer
                np.testing.assert_array_equal(producer.download(view), found[name])
            np.testing.assert_array_equal(producer.download(array), clips[:count])  # the caller's is as it was


def test_the_model_takes_clips_on_the_gpu_and_leaves_embeddings_there(
    model: milnce.Model, producer: Producer, clips: NDArray[np.uint8]
) -> None:
    expected = model.encode_video(clips[:5])
    array = producer.upload(clips[:5])
    found = model.encode_video(array)
    np.testing.assert_allclose(found.embedding, expected.embedding, rtol=1e-3, atol=1e-3)
    there = model.encode_video(array, on_device=True)
    pairs: list[tuple[Any, Any]] = [(there.embedding, found.embedding), (there.mixed_5c, found.mixed_5c)]
    for values, wanted in pairs:
        assert isinstance(values, DeviceArray)
        np.testing.assert_array_equal(producer.download(producer.view(values)), wanted)


def test_ids_on_the_gpu_are_taken(opened: Opener, producer: Producer, bundle: Bundle) -> None:
    rows, words = bundle.manifest.vocabulary.words + 1, bundle.manifest.vocabulary.max_words
    tokens = np.random.default_rng(0).integers(0, rows, (5, words))
    with opened("text") as backend:
        expected = backend.run({"tokens": tokens})["text_embedding"]
        try:
            found = backend.run({"tokens": producer.upload(tokens)})["text_embedding"]
        except InputError as error:
            assert "takes int32" in str(error)  # noqa: PT017 - TensorRT 8.5 has no int64, and says so
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_clips_that_are_still_being_written_are_waited_for(
    opened: Opener, producer: Producer, clips: NDArray[np.uint8]
) -> None:
    with opened() as backend, producer.stream():
        expected = backend.run({"video": clips[:4]})["video_embedding"]
        array, source = producer.upload(np.zeros_like(clips[:4])), producer.upload(clips[:4])
        producer.write_late(array, source)
        found = backend.run({"video": array})["video_embedding"]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_the_callers_stream_is_honoured_on_both_sides(
    opened: Opener, producer: Producer, clips: NDArray[np.uint8]
) -> None:
    with opened() as backend:
        expected = backend.run({"video": clips[:4]})["video_embedding"]
        for _ in range(3):
            with producer.stream() as handle:
                array, source = producer.upload(np.zeros_like(clips[:4])), producer.upload(clips[:4])
                copy = producer.upload(np.zeros_like(expected))
                producer.write_late(array, source)
                there = backend.run({"video": array}, cuda_stream=handle)
                # Enqueued on the same stream, while the host has waited for nothing.
                producer.write_late(copy, producer.view(there["video_embedding"]))
                found = producer.download(copy)
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_streams_take_batches_from_host_and_gpu_mixed(
    opened: Opener, producer: Producer, clips: NDArray[np.uint8]
) -> None:
    arrays: list[Any] = [producer.upload(clips[first : first + 5]) for first in range(0, 20, 5)]
    hosts = [clips[first : first + 5] for first in range(0, 20, 5)]
    mixed = [array for pair in zip(hosts, arrays, strict=True) for array in pair]
    with opened() as backend:
        expected = [backend.run({"video": host})["video_embedding"] for host in hosts]
        found = [outputs["video_embedding"] for outputs in backend.stream({"video": array} for array in mixed)]
    for index, values in enumerate(found):
        wanted = expected[index // 2]
        np.testing.assert_allclose(values, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


def test_clips_of_another_dtype_or_rank_are_refused(
    opened: Opener, producer: Producer, clips: NDArray[np.uint8]
) -> None:
    with opened() as backend:
        with pytest.raises(InputError, match="dtype float32 given, uint8 expected"):
            backend.run({"video": producer.upload(clips[:1].astype(np.float32))})
        with pytest.raises(InputError, match="rank 4 given"):
            backend.run({"video": producer.upload(clips[0])})
        assert len(backend.run({"video": producer.upload(clips[:1])})["video_embedding"]) == 1
