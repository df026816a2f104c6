"""One sentence, and ten thousand: the text tower in NumPy beside ONNX Runtime and OpenVINO on the same cores.

    python benchmarks/text.py [--bundle FOLDER] [--rounds 5] [--single-rounds 1000] [--sentences 10000] [--cores N]

Without --bundle it is a full-width one of seeded weights, made once in --work. Sentences are made of the bundle's own
words: "drawn by Zipf's law", as captions are (rank r with weight 1/r, lengths
around 8 words), and "all words different", the worst case, 16 words each, all words equally likely. Each measurement
runs in a process of its own, whose libraries have as many threads as there are cores: one for single sentences. Inside
it the backends take turns, round by round, and what they give is held to 1e-5 of the largest value of ONNX Runtime's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from milnce.backends import Backend
    from milnce.bundle import Bundle
    from milnce.tokenizer import Tokenizer

BACKENDS = ("numpy", "onnxruntime", "openvino")
REFERENCE = "onnxruntime"
# What is allowed, of the largest value.
TOLERANCE = 1e-5
CASES = ("zipf", "different")
# ONNX Runtime and OpenVINO get the batches that `Model.encode_text` gives them.
_BATCH = 256
_WORK = Path(__file__).resolve().parents[1] / "build" / "benchmarks"
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def main() -> None:
    """Measure, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=None, help="a bundle to measure instead of the seeded one")
    parser.add_argument("--work", type=Path, default=_WORK, help="where the seeded bundle is kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--single-rounds", type=int, default=1000)
    parser.add_argument("--sentences", type=int, default=10_000)
    parser.add_argument("--cores", type=int, default=None, help="for ten thousand sentences; all of this process")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(_MEASUREMENTS[options.child](options)))
        return
    import harness  # noqa: PLC0415 - not in the children, which load what they measure alone
    from bundles import full_width_bundle  # noqa: PLC0415

    bundle = options.bundle or full_width_bundle(options.work)
    everything = sorted(os.sched_getaffinity(0))
    cores = everything[: options.cores or len(everything)]
    measured = {}
    for name in _MEASUREMENTS:
        measured[name] = _in_a_process(name, bundle, cores[:1] if name in {"single", "load"} else cores)
    settings = {
        "sentences": options.sentences,
        "rounds": options.rounds,
        "single_rounds": options.single_rounds,
        "cores": len(cores),
        "largest_error": TOLERANCE,
        "bundle": measured["single"]["bundle"],
    }
    rows = [row for found in measured.values() for row in found["rows"]]
    harness.write("text-cpu", {"settings": settings, "rows": rows, "targets": targets(rows)})


def targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was to be reached, beside what the rows have."""
    from harness import Target  # noqa: PLC0415 - as above

    by_name = {(row["case"], row["backend"]): row for row in rows}
    single = by_name.get(("one sentence", "numpy"), {}).get("median_s")
    found = [
        Target("one sentence on one core, median ms", 1.0, None if single is None else 1e3 * single, "lower"),
    ]
    for case in CASES:
        of, what = f"many, {case}", {"zipf": "drawn by Zipf's law", "different": "all words different"}[case]
        for other in BACKENDS[1:]:
            ratio = by_name.get((of, "numpy"), {}).get("times_as_fast_as", {}).get(other)
            found.append(Target(f"many sentences, {what}: times as fast as {other}", 1.0, ratio, "higher"))
    return [target.to_json() for target in found]


def _in_a_process(name: str, bundle: Path, cores: list[int]) -> dict[str, Any]:
    """Run one measurement on these cores alone, every library with as many threads."""
    arguments = [sys.executable, __file__, *sys.argv[1:], "--bundle", str(bundle), "--child", name]
    threads = dict.fromkeys(_THREAD_VARIABLES, str(len(cores)))
    done = subprocess.run(  # noqa: S603 - this very script
        arguments,
        env={**os.environ, **threads},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def make_sentences(words: list[str], case: str, count: int) -> list[str]:
    """Return seeded sentences of the vocabulary's words."""
    import numpy as np  # noqa: PLC0415 - in the children alone

    rng = np.random.default_rng(0)
    if case == "zipf":
        weights = 1 / np.arange(1, len(words) + 1)
        lengths = np.clip(rng.poisson(8, count), 1, 16)
        drawn = rng.choice(len(words), int(lengths.sum()), p=weights / weights.sum())
        # Which words are frequent says nothing about where they lie in the table.
        drawn = rng.permutation(len(words))[drawn]
    else:
        lengths = np.full(count, 16)
        drawn = rng.integers(0, len(words), 16 * count)
    ends = np.cumsum(lengths)
    return [" ".join(words[index] for index in drawn[end - length : end]) for length, end in zip(lengths, ends)]  # noqa: B905


def _open(bundle: Bundle, threads: int) -> dict[str, Backend]:
    from milnce import backends  # noqa: PLC0415

    graph = bundle.graph("text")
    usable = {found.name for found in backends.available() if found.usable}
    choices = [backends.BackendChoice(name, "cpu", "fp32", "benchmark") for name in BACKENDS if name in usable]
    return {choice.name: backends.open_graph(choice, bundle.read(graph), graph, threads=threads) for choice in choices}


def _vocabulary(bundle: Bundle) -> list[str]:
    """Return the words that a sentence can be made of: those that the tokenizer finds again."""
    tokenizer = bundle.tokenizer()
    text = (bundle.path / bundle.manifest.vocabulary.file).read_text("utf-8")
    return [word for word in text.split("\n") if word and not tokenizer.unknown(word) and tokenizer(word)[0, 0]]


def _encoder(backend: Backend) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
    import numpy as np  # noqa: PLC0415

    def encode(tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        step = len(tokens) if backend.splits_itself else _BATCH
        parts = [
            backend.run({"tokens": tokens[start : start + step]})["text_embedding"]
            for start in range(0, len(tokens), step)
        ]
        return np.concatenate(parts)

    return encode


def _single(options: argparse.Namespace) -> dict[str, Any]:
    """One sentence at a time, with and without tokenising."""
    from milnce.bundle import Bundle  # noqa: PLC0415
    from milnce.timing import interleaved  # noqa: PLC0415

    bundle = Bundle.open(options.bundle)
    tokenizer, opened = bundle.tokenizer(), _open(bundle, threads=1)
    sentences = make_sentences(_vocabulary(bundle), "zipf", 256)
    tokens = tokenizer(sentences)
    parity = _parity({name: _encoder(backend)(tokens) for name, backend in opened.items()})
    actions: dict[str, Callable[[], object]] = {}
    for name, backend in opened.items():
        actions[f"{name} tokens"] = _Turns(backend, tokens, None, sentences)
        actions[f"{name} text"] = _Turns(backend, tokens, tokenizer, sentences)
    timings, errors = interleaved(actions, rounds=options.single_rounds, warmup=20, seconds=60)
    rows = []
    for name in opened:
        for kind, case in (("text", "one sentence"), ("tokens", "one sentence, already words")):
            row = _row(case, name, parity[name], errors.get(f"{name} {kind}"))
            if not row["failures"]:
                timing = timings[f"{name} {kind}"].to_json()
                del timing["seconds"]
                row |= timing
            rows.append(row)
    about = f"{bundle.manifest.name}, {bundle.manifest.vocabulary.words} words"
    return {"bundle": about, "rows": rows}


class _Turns:
    """Encodes one sentence, another one each time."""

    def __init__(
        self, backend: Backend, tokens: NDArray[np.int64], tokenizer: Tokenizer | None, sentences: list[str]
    ) -> None:
        self._backend, self._tokens, self._tokenizer, self._sentences = backend, tokens, tokenizer, sentences
        self._turn = 0

    def __call__(self) -> object:
        index = self._turn = (self._turn + 1) % len(self._sentences)
        if self._tokenizer is not None:
            return self._backend.run({"tokens": self._tokenizer(self._sentences[index])})
        return self._backend.run({"tokens": self._tokens[index : index + 1]})


def _many(case: str) -> Callable[[argparse.Namespace], dict[str, Any]]:
    def measure(options: argparse.Namespace) -> dict[str, Any]:
        """Ten thousand sentences."""
        from milnce.bundle import Bundle  # noqa: PLC0415
        from milnce.timing import interleaved, ratios  # noqa: PLC0415

        bundle = Bundle.open(options.bundle)
        tokenizer, opened = bundle.tokenizer(), _open(bundle, threads=len(os.sched_getaffinity(0)))
        sentences = make_sentences(_vocabulary(bundle), case, options.sentences)
        tokens = tokenizer(sentences)
        encoders = {name: _encoder(backend) for name, backend in opened.items()}
        parity = _parity({name: encode(tokens) for name, encode in encoders.items()})
        actions: dict[str, Callable[[], object]] = {"tokenizer": lambda: tokenizer(sentences)}
        for name, encode in encoders.items():
            actions[name] = lambda encode=encode: encode(tokens)  # type: ignore[misc] # bound now, called without
        timings, errors = interleaved(actions, rounds=options.rounds, warmup=1, seconds=100, least=3)
        rows = [_row(f"many, {case}", name, parity[name], errors.get(name)) for name in opened]
        sound = [row["backend"] for row in rows if not row["failures"]]
        for row in rows:
            name = row["backend"]
            if not row["failures"]:
                row.update(timings[name].to_json())
                row["sentences_per_s"] = options.sentences / timings[name].median_s
                row["times_as_fast_as"] = {other: ratios(timings[other], timings[name]).median for other in sound}
        row = {"case": f"many, {case}", "backend": "tokenizer", "name": f"many, {case}: tokenizer", "failures": []}
        row |= {"gate": None, "why": "it turns sentences into words, which every row is given"}
        rows.append(row | timings["tokenizer"].to_json() | {"different_words": len(set(tokens.ravel().tolist()))})
        return {"rows": rows}

    return measure


def _load(options: argparse.Namespace) -> dict[str, Any]:
    """From the first import to the first sentence's embedding, a process each."""
    script = (
        "import sys, time; began = time.perf_counter(); import milnce\n"
        "model = milnce.load(sys.argv[1], backend=sys.argv[2], modules=('text',))\n"
        "found = model.encode_text('open the door'); seconds = time.perf_counter() - began\n"
        "import json; print(json.dumps({'seconds': seconds, 'embedding': found.tolist()}))"
    )
    import numpy as np  # noqa: PLC0415

    from milnce.timing import Timing  # noqa: PLC0415

    embeddings: dict[str, list[Any]] = {name: [] for name in BACKENDS}
    seconds: dict[str, list[float]] = {name: [] for name in BACKENDS}
    failures: dict[str, str] = {}
    for number in range(options.rounds + 1):
        for name in BACKENDS:
            arguments = [sys.executable, "-W", "ignore", "-c", script, str(options.bundle), name]
            done = subprocess.run(arguments, capture_output=True, text=True, check=False)  # noqa: S603 - the line above
            if done.returncode:
                failures[name] = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
                continue
            answer = json.loads(done.stdout.splitlines()[-1])
            embeddings[name].append(answer["embedding"])
            if number:  # the first brings the files into the page cache
                seconds[name].append(answer["seconds"])
    # Every run is compared; a backend that failed in one gave less of them, and has no parity.
    complete = {name: np.array(found, np.float32) for name, found in embeddings.items() if name not in failures}
    parity = _parity(complete)
    rows = []
    for name in BACKENDS:
        row = _row("start to first sentence", name, parity.get(name, {}), failures.get(name))
        if not row["failures"]:
            row |= Timing(tuple(seconds[name])).to_json()
        rows.append(row)
    return {"rows": rows}


def _parity(found: dict[str, NDArray[np.float32]]) -> dict[str, dict[str, float]]:
    import numpy as np  # noqa: PLC0415

    reference = found.get(REFERENCE)
    if reference is None:
        raise SystemExit(f"{REFERENCE} is what the others are held against; install it")
    largest = float(np.abs(reference).max())
    return {name: {"relative_error": float(np.abs(rows - reference).max()) / largest} for name, rows in found.items()}


def _row(case: str, backend: str, parity: dict[str, float], error: str | None) -> dict[str, Any]:
    failures = [] if error is None else [error]
    distance = parity.get("relative_error")
    if distance is None:
        failures += [] if failures else ["its outputs were compared with nothing"]
    elif not distance <= TOLERANCE:  # NaN is not
        failures.append(f"relative error {distance:.1e}, at most {TOLERANCE:.0e} expected")
    return {"name": f"{case}: {backend}", "case": case, "backend": backend, "parity": parity, "failures": failures}


_MEASUREMENTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "single": _single,
    **{case: _many(case) for case in CASES},
    "load": _load,
}

if __name__ == "__main__":
    main()
