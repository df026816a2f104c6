"""The TensorRT backend, over simulated TensorRT 8.5, 10 and RTX on a simulated GPU that computes real numbers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import milnce
from helpers.doubling import Foreign, read_later
from helpers.plan_machine import PlanMachine
from helpers.tiny_bundle import tiny_clips
from milnce.backends import CudaOptions
from milnce.cuda import Cuda
from milnce.errors import InputError
from milnce.plans import PlanProfile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from helpers.fake_cuda_streams import Policy
    from helpers.fake_tensorrt import Flavour
    from helpers.tiny_bundle import Tiny

POLICIES: list[tuple[Policy, int]] = [("lazy", 0), ("random", 1), ("random", 2)]
FLAVOURS: tuple[Flavour, ...] = ("8.5", "10", "rtx")
# Only where several batches are under way at once does it matter when the simulated GPU gets to them.
in_any_order = pytest.mark.parametrize(
    "machine",
    [(flavour, policy) for flavour in FLAVOURS for policy in POLICIES],
    indirect=True,
    ids=lambda found: f"{found[0]}-{found[1][0]}{found[1][1]}",
)
on_any_library = pytest.mark.parametrize(
    "machine", [(flavour, POLICIES[0]) for flavour in FLAVOURS], indirect=True, ids=FLAVOURS
)


@pytest.fixture
def machine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tiny: Tiny, tmp_path: Path
) -> Iterator[PlanMachine]:
    flavour: Flavour
    flavour, policy = getattr(request, "param", ("10", POLICIES[0]))
    made = PlanMachine(monkeypatch, tiny, tmp_path / "plans", flavour, policy=policy)
    yield made
    made.close()


def assert_same(found: Any, expected: NDArray[np.float32]) -> None:  # noqa: ANN401 - an array of some library
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def tokens_of(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(count).integers(0, 14, (count, 16))


@in_any_order
def test_video_gives_the_towers_numbers_at_any_batch(machine: PlanMachine) -> None:
    backend = machine.made()
    for count in [1, 3, 8, 21]:
        for seed in range(3):  # the first run, the capture, the graph
            clips = tiny_clips(count, seed=seed)
            found = backend.run({"video": clips})
            embedding, mixed_5c = machine.tiny.weights.video(clips)
            assert_same(found["video_embedding"], embedding)
            assert_same(found["mixed_5c"], mixed_5c)


@on_any_library
def test_text_projection_and_float_clips_run_too(machine: PlanMachine) -> None:
    weights = machine.tiny.weights
    text, tokens = machine.made("text"), tokens_of(11)
    assert text.inputs[0].dtype == "int64"
    assert_same(text.run({"tokens": tokens})["text_embedding"], weights.text(tokens))
    features = np.random.default_rng(0).random((5, 12), dtype=np.float32)
    assert_same(machine.made("projection").run({"mixed_5c": features})["video_embedding"], weights.project(features))
    clips = tiny_clips(3)
    floats = clips.transpose(0, 4, 1, 2, 3).astype(np.float32) / np.float32(255)
    assert_same(machine.made(form="float32").run({"video": floats})["mixed_5c"], weights.video(clips)[1])


@on_any_library
def test_fp16_plans_run_and_say_so(machine: PlanMachine) -> None:
    machine.write(precision="fp16")
    backend = machine.open(precision="fp16")
    assert backend.precision == "fp16"
    clips = tiny_clips(5)
    np.testing.assert_allclose(
        backend.run({"video": clips})["mixed_5c"], machine.tiny.weights.video(clips)[1], rtol=0, atol=2e-2
    )


@in_any_order
def test_stream_and_threads_give_what_run_gives(machine: PlanMachine) -> None:
    backend = machine.made()
    batches = [tiny_clips(index % 9 + 1, seed=index) for index in range(9)]
    expected = [machine.tiny.weights.video(clips)[1] for clips in batches]
    for _ in range(2):
        streamed = backend.stream({"video": clips} for clips in batches)
        for found, wanted in zip(streamed, expected, strict=True):
            assert_same(found["mixed_5c"], wanted)
    with ThreadPoolExecutor(6) as threads:
        ran = threads.map(lambda clips: backend.run({"video": clips}), batches)
        for found, wanted in zip(ran, expected, strict=True):
            assert_same(found["mixed_5c"], wanted)


@on_any_library
def test_the_library_is_never_used_by_two_threads_at_once(machine: PlanMachine) -> None:
    backends = [machine.made(options=CudaOptions(slots=3)), machine.made("text")]
    tokens = tokens_of(9)

    def work(turn: int) -> None:
        if turn % 2:
            backends[1].run({"tokens": tokens[: turn % 8 + 1]})
        else:
            backends[0].run({"video": tiny_clips(turn % 8 + 1)})

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(48)))


# CUDA graphs


@on_any_library
def test_graphs_are_captured_once_a_slot_and_bucket_and_replayed(machine: PlanMachine) -> None:
    counts = machine.fake.counts
    backend = machine.made(options=CudaOptions(slots=2))
    backend.run({"video": tiny_clips(8)})
    for _ in range(5):
        list(backend.stream({"video": tiny_clips(size)} for size in (2, 2, 8, 8)))
    captures = machine.fake.counts["cudaStreamBeginCapture"] - counts["cudaStreamBeginCapture"]
    launches = machine.fake.counts["cudaGraphLaunch"] - counts["cudaGraphLaunch"]
    if machine.flavour in {"8.5", "rtx"}:  # whose slots share a context; which captures by itself
        assert (captures, launches) == (0, 0)
    else:  # in two slots the first run of each of two buckets is a plain one; whichever slots they got
        assert 2 <= captures <= 4
        assert 21 - 4 <= launches <= 21 - 2
    plain = machine.made(options=CudaOptions(slots=2, cuda_graphs=False))
    before = machine.fake.counts["cudaGraphLaunch"]
    for _ in range(4):
        plain.run({"video": tiny_clips(2)})
    assert machine.fake.counts["cudaGraphLaunch"] == before
    assert (backend.graphs_problem is None) == (machine.flavour != "8.5")


@on_any_library
def test_one_slot_of_tensorrt_8_5_has_its_contexts_to_itself_and_captures(machine: PlanMachine) -> None:
    backend = machine.made(options=CudaOptions(slots=1))
    for _ in range(3):
        backend.run({"video": tiny_clips(8)})
        backend.run({"video": tiny_clips(2)})
    assert machine.fake.counts["cudaStreamBeginCapture"] == (0 if machine.flavour == "rtx" else 2)


@pytest.mark.parametrize("call", ["plan", "cudaStreamBeginCapture", "cudaGraphInstantiate"])
def test_a_graph_that_cannot_be_captured_is_said_and_the_batch_runs_without(
    machine: PlanMachine, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend = machine.made(options=CudaOptions(slots=1), capturable=call != "plan")
    clips = tiny_clips(4)
    expected = machine.tiny.weights.video(clips)[1]
    if call != "plan":
        machine.fake.fail(call)
    for _ in range(4):
        assert_same(backend.run({"video": clips})["mixed_5c"], expected)
    assert backend.graphs_problem is not None
    assert ("this plan allocates while it runs" if call == "plan" else call) in backend.graphs_problem
    assert caplog.text.count("batches run without CUDA graphs from now on: ") == 1
    assert machine.fake.counts["cudaStreamBeginCapture"] == 1
    assert machine.fake.counts["cudaGraphLaunch"] == 0


def test_a_capture_bears_other_threads_that_allocate_and_wait(
    machine: PlanMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = machine.made(options=CudaOptions(slots=2))
    clips = tiny_clips(4)
    expected = machine.tiny.weights.video(clips)[1]
    enqueue, disturbed = backend._engine.enqueue, []  # noqa: SLF001

    def elsewhere() -> None:
        cuda = Cuda()
        with cuda.device_buffer(256) as buffer, cuda.stream() as stream:
            cuda.fill(buffer.pointer, 0, 256, stream)
            stream.synchronize()
            disturbed.append(1)

    def enqueue_while_others_work(context: object, stream: int) -> None:
        if int(machine.fake.cudaStreamIsCapturing(stream)[1]) != 0:
            with ThreadPoolExecutor(1) as other:
                other.submit(elsewhere).result(timeout=60)
        enqueue(context, stream)

    monkeypatch.setattr(backend._engine, "enqueue", enqueue_while_others_work)  # noqa: SLF001
    for _ in range(3):
        assert_same(backend.run({"video": clips})["mixed_5c"], expected)
    assert disturbed == [1]
    assert backend.graphs_problem is None
    assert machine.fake.counts["cudaGraphLaunch"] == 2


# Profiles


@on_any_library
def test_a_range_of_sizes_runs_at_every_size_without_padding(machine: PlanMachine) -> None:
    span = PlanProfile({"video": ((1, 4, 16, 16, 3), (2, 4, 16, 16, 3), (8, 8, 32, 32, 3))})
    backend = machine.made(profiles=[span])
    for frames, size, count in [(4, 16, 1), (8, 20, 5), (6, 32, 11), (4, 16, 3)]:
        clips = tiny_clips(count, frames=frames, size=size)
        assert_same(backend.run({"video": clips})["mixed_5c"], machine.tiny.weights.video(clips)[1])
    assert [str(axis) for axis in backend.inputs[0].shape[1:]] == [
        "frames=4..8 step 2",
        "height=16..32 step 2",
        "width=16..32 step 2",
        "3",
    ]
    assert machine.fake.counts["cudaStreamBeginCapture"] == 0  # a graph holds one shape
    with pytest.raises(InputError, match=r"frames is 10, .*expected frames=4..8 step 2"):
        backend.run({"video": tiny_clips(1, frames=10)})


def test_sizes_between_two_profiles_are_refused_with_what_there_is(machine: PlanMachine) -> None:
    items = [(4, 16, 16, 3), (8, 16, 16, 3)]
    backend = machine.made(profiles=[PlanProfile({"video": ((1, *item),) * 3}) for item in items])
    backend.run({"video": tiny_clips(1, frames=8)})
    with pytest.raises(
        InputError, match=r"has no profile for video \(6, 16, 16, 3\); its profiles take video \(1, 4, 16"
    ):
        backend.run({"video": tiny_clips(1, frames=6)})


def test_wrong_batches_are_refused(machine: PlanMachine) -> None:
    backend = machine.made()
    for array, text in (
        (tiny_clips(1).astype(np.float32), "video: dtype float32 given, uint8 expected"),
        (tiny_clips(1, size=18), r"height is 18, .*expected 16"),
        (tiny_clips(1)[:0], r"batch is 0, .*expected batch=1.."),
        ([1, 2], "video: a numpy.ndarray or an array on the GPU expected, list given"),
    ):
        for call in (backend.run, backend.submit):
            with pytest.raises(InputError, match=text):
                call({"video": array})


@on_any_library
@pytest.mark.parametrize("limit", [None, 14])
def test_ids_outside_the_vocabulary_are_refused_on_the_host(machine: PlanMachine, limit: int | None) -> None:
    machine.write("text")
    backend = machine.open("text", index_limit=limit)
    tokens = tokens_of(3)
    wrong = [-1]
    if limit is not None:
        wrong += [14, 2**40]
    elif machine.flavour == "8.5":  # which holds them as int32, where this would be 13
        wrong += [2**32 + 13]
    for value in wrong:
        tokens[1, 7] = value
        text = rf"tokens: id {value} given; ids are 0 \(padding\) to \d+, as the tokenizer gives them"
        for call in (backend.run, backend.submit):
            with pytest.raises(InputError, match=text):
                call({"tokens": tokens})
    tokens[1, 7] = 13
    assert_same(backend.run({"tokens": tokens})["text_embedding"], machine.tiny.weights.text(tokens))


# Arrays on the GPU


@on_any_library
def test_clips_on_the_gpu_and_embeddings_left_there(machine: PlanMachine) -> None:
    machine.write()
    clips = tiny_clips(11)
    embedding, mixed_5c = machine.tiny.weights.video(clips)
    with milnce.load(machine.bundle.path, plans=machine.plans, modules="video") as model:
        for _ in range(3):
            given = Foreign(machine.fake, clips)
            left: Any = model.encode_video(given, on_device=True)
            assert_same(left.embedding.copy_to_host(), embedding)
            assert_same(left.mixed_5c.copy_to_host(), mixed_5c)
            assert_same(model.encode_video(given).embedding, embedding)
            left = model.encode_video(clips, on_device=True)
            assert_same(left.mixed_5c.copy_to_host(), mixed_5c)
        backend = model.open("video")
        with Cuda().stream() as stream:
            given = Foreign(machine.fake, clips, stream=stream.handle)
            found = backend.run({"video": given}, cuda_stream=stream.handle)
            read = {name: read_later(machine.fake, array, stream.handle) for name, array in found.items()}
            stream.synchronize()
        assert_same(read["video_embedding"], embedding)
        assert_same(read["mixed_5c"], mixed_5c)


@on_any_library
def test_ids_on_the_gpu_are_taken_as_the_plan_holds_them(machine: PlanMachine) -> None:
    backend = machine.made("text")
    tokens = tokens_of(5)
    given = Foreign(machine.fake, tokens)
    if machine.flavour == "8.5":
        with pytest.raises(InputError, match="tokens: int64 given on the GPU, where this plan takes int32; give a num"):
            backend.run({"tokens": given})
        machine.fake.cudaDeviceSynchronize()
    else:
        assert_same(backend.run({"tokens": given})["text_embedding"], machine.tiny.weights.text(tokens))
