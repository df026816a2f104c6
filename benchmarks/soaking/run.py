"""Runs the mixed traffic round by round, takes a sample between rounds, and judges the run."""

from __future__ import annotations

import logging
import os
import random
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import milnce
from soaking import batching, decoding, traffic
from soaking.material import compute_answers, make_material
from soaking.planted import SHARED_PREFIX, Plan, Planted
from soaking.statistic import LEAST_SAMPLES, count_growth, memory_growth
from soaking.watch import COUNTS, MEMORY, Watch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from soaking.statistic import Counts, Growth
    from soaking.traffic import Action, Scene
    from soaking.watch import Sample

# How often each is done, beside the others; and about what each costs, so that none takes most of the time.
ACTIONS: dict[str, tuple[Action, float]] = {
    "sentences": (traffic.ask_text, 60),  # 0.3 ms
    "unknown words": (traffic.ask_unknown, 15),
    "clips": (traffic.ask_clips, 20),  # 15 ms a clip
    "wrong arguments": (traffic.ask_wrongly, 20),
    "search of stored features": (traffic.search_stored, 40),  # 2 ms
    "search of an index": (traffic.search_index, 12),  # 10 ms, and 40 ms a video that is new
    "evaluation": (traffic.evaluate_captions, 10),  # 5 ms
    "burst": (batching.submit_burst, 40),
    "burst of asyncio": (batching.await_burst, 20),
    "overload": (batching.overload, 5),
    "load and close": (traffic.load_and_close, 2),  # 200 ms
    "files": (decoding.embed_here, 8),  # 40 ms a file
    "files by workers": (decoding.embed_with_workers, 2),  # 0.5 s
    "files left halfway": (decoding.leave_halfway, 1),
    "files and a killed decoder": (decoding.kill_decoder, 1),
}
_LEFT = ("children", "shared_memory", "temporary_files")
_SHOWN_FAILURES = 20
_MOST_FAILURES = 200
_LEAST_ROUND_S = 0.4
_MOST_ROUNDS = 300


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        folder: An empty folder for the files; temporary ones go to its `tmp`.
        bundle: The bundle.
        seconds: How long, at least.
        callers: How many threads ask at the same time.
        seed: Decides what is asked, in which order; not which of two threads comes first.
        backend: As in `milnce.load`.
        plan: What goes wrong on purpose.
        least_rounds: How many rounds, at least, on a machine that is too slow for more in the seconds.
    """

    folder: Path
    bundle: Path
    seconds: float
    callers: int = 3
    seed: int = 0
    backend: str = "auto"
    plan: Plan = field(default_factory=Plan)
    least_rounds: int = 2 * LEAST_SAMPLES

    @property
    def round_s(self) -> float:
        """Seconds of a round: 0.4 or more, so that what happens between rounds is little beside them."""
        return max(_LEAST_ROUND_S, self.seconds / _MOST_ROUNDS)


@dataclass
class Ledger:
    """What was done, and what went wrong.

    Attributes:
        requests: Requests answered, by action.
        calls: How often each action was done.
        seconds: What they took together.
        failures: What went wrong, in words; the first ones.
        failed: How many went wrong.
    """

    requests: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    failures: list[str] = field(default_factory=list)
    failed: int = 0

    def add(self, other: Ledger) -> None:
        """Take over what one caller did in one round."""
        self.requests.update(other.requests)
        self.calls.update(other.calls)
        for name, seconds in other.seconds.items():
            self.seconds[name] += seconds
        self.failed += other.failed
        self.failures = [*self.failures, *other.failures][:_SHOWN_FAILURES]

    def fail(self, text: str) -> None:
        """Take note of something that went wrong."""
        self.failed += 1
        self.failures.append(text)


def run(settings: Settings, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run the soak.

    Returns:
        The report: "settings", "rows" (an action each), "samples", "verdicts", and "problems", which is empty if all is
        well.
    """
    watch = Watch(settings.folder / "tmp", _is_ours)
    planted = Planted(settings.plan)
    ledger = Ledger()
    samples: list[Sample] = []
    began = time.perf_counter()
    with ExitStack() as stack:
        stack.callback(planted.close)
        # Warnings as the user has them, kept by Python's own registries; only not printed, thousands of times over.
        logging.captureWarnings(True)
        stack.callback(logging.captureWarnings, False)
        model = stack.enter_context(milnce.load(settings.bundle, backend=settings.backend, threads=1))
        say(str(model.backend))
        material = make_material(settings.folder / "material", model, settings.seed)
        answers = compute_answers(model, material)
        batcher = stack.enter_context(milnce.Batcher(model))
        scene = traffic.Scene(model, batcher, material, answers, settings.backend)
        callers = stack.enter_context(ThreadPoolExecutor(settings.callers, thread_name_prefix="caller"))
        # What libraries keep for themselves as soon as they are used: ONNX Runtime has a file among the temporary ones.
        first = watch.sample(time.perf_counter() - began, 0)
        while time.perf_counter() - began < first.seconds + settings.seconds or len(samples) < settings.least_rounds:
            before, failed = ledger.requests.total(), ledger.failed
            _round(settings, scene, callers, ledger, len(samples))
            for failure in ledger.failures[failed:]:
                say(failure)
            planted.after_requests(ledger.requests.total() - before)
            planted.after_round()
            if "answers" in settings.plan.kinds:
                answers.text[0, 0] += 1
            samples.append(watch.sample(time.perf_counter() - began, ledger.requests.total()))
            say(_line(samples[-1], ledger))
            if ledger.failed > _MOST_FAILURES:
                say("stopped: too much goes wrong")
                break
        callers.shutdown()
        batcher.close()
        model.close()
        left = watch.sample(time.perf_counter() - began, ledger.requests.total())
    return _report(settings, str(model.backend), scene, ledger, samples, (first, left))


def _is_ours(name: str) -> bool:
    """Whether an entry of /dev/shm may be of this process; what another soak has planted is not."""
    if name.startswith(SHARED_PREFIX):
        return name.startswith(f"{SHARED_PREFIX}{os.getpid()}-")
    return name.startswith(("milnce", "psm_"))  # as Python's multiprocessing names its own


def _round(settings: Settings, scene: Scene, callers: ThreadPoolExecutor, ledger: Ledger, number: int) -> None:
    """Let all callers ask until the round ends; then nothing is at work."""
    until = time.perf_counter() + settings.round_s
    seeds = [f"{settings.seed}-{number}-{caller}" for caller in range(settings.callers)]
    # The first round does each once, shared among the callers, so that a short soak leaves none to chance.
    firsts = [list(ACTIONS)[caller :: settings.callers] if number == 0 else [] for caller in range(settings.callers)]
    asked = [
        callers.submit(_ask, scene, seed, caller, until, first)
        for caller, (seed, first) in enumerate(zip(seeds, firsts, strict=True))
    ]
    for done in asked:
        ledger.add(done.result())
    killed, errors = scene.tally["killed"], scene.tally["decoder_errors"]
    if errors > killed:
        ledger.fail(f"round {number}: {errors} files failed with their decoder, and {killed} decoders were killed")
        scene.tally["decoder_errors"] = killed  # told once


def _ask(scene: Scene, seed: str, caller: int, until: float, firsts: list[str]) -> Ledger:
    ledger = Ledger()
    chance = random.Random(seed)  # noqa: S311 - no secrets
    names, weights = list(ACTIONS), [weight for _, weight in ACTIONS.values()]
    pending = list(firsts)
    while pending or time.perf_counter() < until or not ledger.requests.total():
        name = pending.pop(0) if pending else chance.choices(names, weights)[0]
        began = time.perf_counter()
        try:
            ledger.requests[name] += ACTIONS[name][0](scene, chance, caller)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is what a soak is for
            ledger.requests[name] += 1
            ledger.fail(f"{name} ({seed}): {type(error).__name__}: {error}")
        ledger.calls[name] += 1
        ledger.seconds[name] += time.perf_counter() - began
    return ledger


def _report(
    settings: Settings,
    backend: str,
    scene: Scene,
    ledger: Ledger,
    samples: list[Sample],
    ends: tuple[Sample, Sample],
) -> dict[str, Any]:
    verdicts = _judge(samples)
    problems = {name: verdict.problem for name, verdict in verdicts.items() if verdict.problem}
    if ledger.failed:
        problems["answers"] = f"{ledger.failed} went wrong, the first: {ledger.failures[0]}"
    first, left = ends
    for name in _LEFT:
        more = getattr(left, name) - getattr(first, name)
        if more > 0:
            problems[f"{name} at the end"] = f"{more} left after everything was closed"
    return {
        "settings": {
            "bundle": settings.bundle.name,
            "backend": backend,
            "seconds": settings.seconds,
            "callers": settings.callers,
            "seed": settings.seed,
            "round_s": settings.round_s,
            "planted": {"request_bytes": settings.plan.request_bytes, "kinds": sorted(settings.plan.kinds)},
        },
        "rows": [
            {
                "name": name,
                "gate": None,
                "why": "each answer is held to the one computed at the start; those that were wrong are in failures",
                "calls": ledger.calls[name],
                "requests": ledger.requests[name],
                "mean_ms": 1e3 * ledger.seconds[name] / max(1, ledger.calls[name]),
            }
            for name in ACTIONS
        ],
        "tally": dict(scene.tally),
        "samples": [sample.to_json() for sample in samples],
        "left": left.to_json(),
        "verdicts": {name: verdict.to_json() for name, verdict in verdicts.items()},
        "failed": ledger.failed,
        "failures": ledger.failures,
        "problems": problems,
    }


def _judge(samples: list[Sample]) -> dict[str, Growth | Counts]:
    """Return what each series did; nothing of a run that was stopped before there is anything to tell."""
    if len(samples) < LEAST_SAMPLES:
        return {}
    requests = [sample.requests for sample in samples]
    growths = {name: memory_growth(requests, [getattr(sample, name) for sample in samples]) for name in MEMORY}
    return {**growths, **{name: count_growth([getattr(sample, name) for sample in samples]) for name in COUNTS}}


def _line(sample: Sample, ledger: Ledger) -> str:
    return (
        f"{sample.seconds:7.1f} s {sample.requests:9,} requests, {ledger.failed} wrong, "
        f"{sample.rss_bytes / 2**20:7.1f} MiB, {sample.fds} fds, {sample.threads} threads, {sample.children} children"
    )
