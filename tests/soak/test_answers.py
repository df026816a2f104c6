"""What the soak takes for a wrong answer, and what its watch sees."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import tempfile
import threading
from collections import Counter
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from milnce.errors import ClosedError, DeadlineError, DecoderError, VideoError
from milnce.pipeline import FileEmbeddings, WindowSpan
from milnce.video import get_preset
from soaking import batching, decoding, run, traffic
from soaking.material import WrongAnswerError, check_file, check_rows
from soaking.planted import Plan, Planted
from soaking.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from milnce.errors import MilnceError

pytestmark = pytest.mark.alone

ROWS = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
SPANS = (WindowSpan(0, 0.0, 3.2), WindowSpan(1, 3.2, 6.4))
GOOD, BROKEN = Path("good.mp4"), Path("broken.mp4")


def item(path: Path = GOOD, *, error: MilnceError | None = None, **changes: Any) -> FileEmbeddings:  # noqa: ANN401 - fields
    fields: dict[str, Any] = {"windows": SPANS, "embedding": ROWS, "mixed_5c": ROWS, **changes}
    return FileEmbeddings(path=path, error=error, preset=get_preset("milnce-eval"), **fields)


@pytest.fixture
def scene() -> traffic.Scene:
    """Return what callers share, with nothing that could answer."""
    material: Any = SimpleNamespace(broken={BROKEN: "truncated"})
    answers: Any = SimpleNamespace(files={GOOD: item()}, text=ROWS, clips=ROWS)
    nothing: Any = None
    return traffic.Scene(nothing, nothing, material, answers, "onnxruntime")


@pytest.mark.parametrize("found", [ROWS.copy(), ROWS * np.float32(1 + 5e-5)])
def test_rows_that_agree_are_right(found: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    check_rows(found, ROWS, "rows")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (ROWS * np.float32(1.001), r"^rows: off by 1\.0e-03 of the largest value, 0\.0001 allowed$"),
        (ROWS[::-1], "off by"),
        (np.where(ROWS[0, 0] == ROWS, np.float32(np.nan), ROWS), "off by nan"),
        (ROWS[:1], r"float32 \(1, 8\) came, float32 \(2, 8\) expected"),
        (ROWS.astype(np.float64), r"float64 \(2, 8\) came"),
    ],
)
def test_rows_that_differ_are_wrong(found: Any, said: str) -> None:  # noqa: ANN401 - of several dtypes
    with pytest.raises(WrongAnswerError, match=said):
        check_rows(found, ROWS, "rows")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (item(error=VideoError("no")), r"good\.mp4: failed with VideoError"),
        (item(windows=SPANS[:1]), r"good\.mp4: windows .* came"),
        (item(embedding=ROWS + 1), r"good\.mp4: off by"),
        (item(mixed_5c=ROWS + 1), r"good\.mp4, mixed_5c: off by"),
        (item(BROKEN), r"broken\.mp4: an error with 'truncated' expected, None came"),
        (item(BROKEN, error=VideoError("something else")), "an error with 'truncated' expected"),
    ],
)
def test_a_file_that_gives_something_else_is_wrong(scene: traffic.Scene, found: FileEmbeddings, said: str) -> None:
    with pytest.raises(WrongAnswerError, match=said):
        check_file(found, scene.material, scene.answers)


def test_a_file_that_gives_what_it_must_is_right_and_a_dead_decoder_is_counted(scene: traffic.Scene) -> None:
    scene.check(item())
    scene.check(item(BROKEN, error=VideoError("it is truncated")))
    assert scene.tally == Counter()
    scene.check(item(error=DecoderError("died")))
    assert scene.tally == Counter(decoder_errors=1)


@pytest.mark.parametrize("items", [[], [item()], [item(BROKEN, error=VideoError("truncated")), item()], [item()] * 3])
def test_results_in_another_order_or_number_are_wrong(scene: traffic.Scene, items: list[FileEmbeddings]) -> None:
    with pytest.raises(WrongAnswerError, match="in this order"):
        decoding._check_all(scene, [GOOD, BROKEN], items)  # noqa: SLF001
    decoding._check_all(scene, [GOOD, BROKEN], [item(), item(BROKEN, error=VideoError("truncated"))])  # noqa: SLF001


@pytest.mark.parametrize("error", [CancelledError, DeadlineError, ClosedError])
@pytest.mark.parametrize("fate", ["waits", "cancelled", "late", "dropped"])
def test_a_request_may_end_without_an_answer_by_its_fate_alone(
    scene: traffic.Scene, fate: str, error: type[Exception]
) -> None:
    future: Future[Any] = Future()
    future.set_exception(error())
    allowed = {"cancelled": CancelledError, "late": DeadlineError, "dropped": ClosedError}.get(fate)
    if error is allowed:
        batching._settle(scene, future, ("sentence", 0), fate)  # noqa: SLF001
        assert scene.tally == Counter({fate: 1})
    else:
        with pytest.raises(WrongAnswerError, match=f"a sentence that {fate} ended with {error.__name__}"):
            batching._settle(scene, future, ("sentence", 0), fate)  # noqa: SLF001


@pytest.mark.parametrize(("kind", "value"), [("sentence", ROWS[1]), ("clip", SimpleNamespace(embedding=ROWS[1]))])
def test_another_ones_answer_is_wrong(scene: traffic.Scene, kind: str, value: object) -> None:
    future: Future[Any] = Future()
    future.set_result(value)
    batching._settle(scene, future, (kind, 1), "waits")  # noqa: SLF001
    with pytest.raises(WrongAnswerError, match=f"a {kind} that waits: off by"):
        batching._settle(scene, future, (kind, 0), "waits")  # noqa: SLF001


@pytest.mark.parametrize(("killed", "errors", "failures"), [(2, 2, 0), (2, 1, 0), (2, 3, 1)])
def test_a_killed_decoder_may_cost_one_file(
    scene: traffic.Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, killed: int, errors: int, failures: int
) -> None:
    monkeypatch.setattr(run, "ACTIONS", {"nothing": (lambda *_: 1, 1)})
    scene.count(killed=killed, decoder_errors=errors)
    ledger, settings = run.Ledger(), run.Settings(tmp_path, tmp_path, 0.01, callers=1)
    with ThreadPoolExecutor(1) as callers:
        run._round(settings, scene, callers, ledger, 7)  # noqa: SLF001
        run._round(settings, scene, callers, ledger, 8)  # noqa: SLF001
    assert ledger.failed == failures
    assert ledger.failures == ["round 7: 3 files failed with their decoder, and 2 decoders were killed"] * failures


def test_whatever_an_action_raises_is_a_failure_with_its_seed(
    scene: traffic.Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_scene: traffic.Scene, chance: random.Random, _caller: int) -> int:
        raise ZeroDivisionError(chance.randrange(10))

    monkeypatch.setattr(run, "ACTIONS", {"dividing": (fail, 1)})
    ledger = run._ask(scene, "5-6-7", 0, 0.0, [])  # noqa: SLF001
    number = random.Random("5-6-7")  # noqa: S311 - no secrets
    number.choices(["dividing"], [1])
    assert (ledger.failed, ledger.requests, ledger.calls) == (1, Counter(dividing=1), Counter(dividing=1))
    assert ledger.failures == [f"dividing (5-6-7): ZeroDivisionError: {number.randrange(10)}"]


def test_the_first_round_does_each_action_once(scene: traffic.Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"action {number}" for number in range(5)]
    monkeypatch.setattr(run, "ACTIONS", dict.fromkeys(names, (lambda *_: 1, 1)))
    settings = run.Settings(Path(), Path(), seconds=0.0)
    monkeypatch.setattr(run, "_LEAST_ROUND_S", 0.0)
    ledger = run.Ledger()
    with ThreadPoolExecutor(settings.callers) as callers:
        run._round(settings, scene, callers, ledger, 0)  # noqa: SLF001
    assert ledger.calls == Counter(names)


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return Watch(tmp_path, lambda name: name.startswith("milnce-soak-test-"))


def rises(watch: Watch, name: str, make: Callable[[], object]) -> None:
    """See that a count is one higher after `make`."""
    before = getattr(watch.sample(0, 0), name)
    make()
    assert getattr(watch.sample(0, 0), name) == before + 1, name


def test_every_count_sees_one_more(watch: Watch, tmp_path: Path) -> None:
    opened, shared, end = [], Path("/dev/shm", f"milnce-soak-test-{os.getpid()}"), threading.Event()  # noqa: S108
    foreign = Path("/dev/shm", f"other-test-{os.getpid()}")  # noqa: S108
    process: list[subprocess.Popen[bytes]] = []
    children = watch.sample(0, 0).children  # of tests before this one
    try:
        rises(watch, "fds", lambda: opened.append(os.open(os.devnull, os.O_RDONLY)))
        rises(watch, "threads", threading.Thread(target=end.wait, daemon=True).start)
        rises(watch, "children", lambda: process.append(subprocess.Popen(["/bin/sleep", "60"])))
        rises(watch, "shared_memory", lambda: [path.touch() for path in (shared, foreign)])  # type: ignore[func-returns-value]
        rises(watch, "temporary_files", lambda: tempfile.mkstemp(dir=tmp_path))
        # One that has ended and was not waited for is there too.
        process[0].kill()
        os.waitid(os.P_PID, process[0].pid, os.WEXITED | os.WNOWAIT)
        assert watch.sample(0, 0).children == children + 1
    finally:
        end.set()
        os.close(opened[0])
        for path in (shared, foreign):
            path.unlink()
        for one in process:
            one.kill()
            one.wait()


def test_memory_that_is_held_is_seen_and_memory_that_is_free_is_not(watch: Watch) -> None:
    watch.sample(0, 0)
    before = watch.sample(0, 0)
    held: list[Any] = [bytes(2000) for _ in range(20_000)]  # of 40 MB, in pieces that the heap is grown for
    on_top = bytes(2000)  # so that the heap does not end in what will be free, which glibc gives back by itself
    cycle: list[Any] = [held]
    cycle.append(cycle)
    during = watch.sample(0, 0)
    assert during.private_bytes - before.private_bytes > 35e6
    assert min(during.peak_bytes, during.rss_bytes) > before.rss_bytes + 35e6
    del held, cycle
    gc.disable()
    try:
        after = watch.sample(0, 0)
    finally:
        gc.enable()
    assert after.private_bytes - before.private_bytes < 8e6 + len(on_top)
    assert watch.sample(0, 0).peak_bytes < during.rss_bytes - 20e6


def test_a_watch_over_another_folder_than_that_for_temporary_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"temporary files go to .*; set TMPDIR"):
        Watch(tmp_path / "other", bool)


def test_what_is_planted_comes_every_fourth_round_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    planted = Planted(Plan(100, ("temporary_files", "fds")))
    for _ in range(9):
        planted.after_round()
    planted.after_requests(3)
    assert len(list(tmp_path.iterdir())) == 2
    assert [len(kept) for kept in planted._kept] == [300]  # noqa: SLF001
    planted.close()
