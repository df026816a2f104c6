"""How far a build is, from TensorRT's progress monitor, and the way to stop one."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from threading import Event

    from milnce.manifest import GraphFile

# Called with what is going on and the part of it that is done, 0 to 1, or None if that is not known.
Progress = Callable[[str, "float | None"], None]


class Phases:
    """The phases of a build, each inside another, as one number that never falls.

    TensorRT tells of phases and their steps, and not how long each takes, so the number is a hint. The methods are
    those of IProgressMonitor; they may be called from several threads, and must not raise.

    Args:
        report: Called with each larger number.
        stop: Once it is set, the build is told to stop at its next step.
    """

    def __init__(self, report: Callable[[float], None], stop: Event) -> None:
        self._report = report
        self._stop = stop
        self._lock = Lock()
        # Phase -> its parent, its steps and how many are done.
        self._phases: dict[str, tuple[str | None, int, int]] = {}
        self._reported = -1.0
        self._failure: Exception | None = None

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Note that a phase begins."""
        with self._lock:
            self._phases[phase_name] = (parent_phase, max(num_steps, 1), 0)
        self._tell()

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Note that a step is done; return whether to go on."""
        with self._lock:
            if phase_name in self._phases:
                parent, steps, _ = self._phases[phase_name]
                self._phases[phase_name] = (parent, steps, min(step + 1, steps))
        self._tell()
        return not self._stop.is_set()

    def phase_finish(self, phase_name: str) -> None:
        """Note that a phase is over; the step of its parent that it was part of is told of by itself."""
        with self._lock:
            parent, steps, _ = self._phases.pop(phase_name, ("", 1, 0))
            if parent is None:  # the whole build, whose last steps are not always told of
                self._phases[phase_name] = (None, steps, steps)
        self._tell()

    def raise_failure(self) -> None:
        """Raise what `report` raised, if it did."""
        if self._failure is not None:
            raise self._failure

    def _tell(self) -> None:
        with self._lock:
            done = self._done(None)
            if done <= self._reported or self._failure is not None:
                return
            self._reported = done
            try:
                self._report(done)
            except Exception as error:  # noqa: BLE001 - not through TensorRT: the build is stopped, then it is raised
                self._failure = error
                self._stop.set()

    def _done(self, parent: str | None) -> float:
        """Return the part that is done of the phases under `parent`: the one that has come furthest."""
        return (
            max(
                ((done + (self._done(name) if done < steps else 0.0)) / steps)
                for name, (above, steps, done) in self._children(parent)
            )
            if self._children(parent)
            else 0.0
        )

    def _children(self, parent: str | None) -> list[tuple[str, tuple[str | None, int, int]]]:
        return [(name, phase) for name, phase in self._phases.items() if phase[0] == parent]


def monitor(trt: Any, graph: GraphFile, progress: Progress | None, stop: Event) -> Any:  # noqa: ANN401 - not typed
    """Return a progress monitor for a build: it reports to `progress`, and stops the build when `stop` is set."""

    def report(done: float) -> None:
        if progress is not None:
            progress(str(graph), done)

    class Monitor(Phases, trt.IProgressMonitor):  # type: ignore[misc] # the library is not typed
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            Phases.__init__(self, report, stop)

    return Monitor()
