"""The model: clips and sentences in, embeddings out. Knows no backend by name."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce import backends
from milnce.arguments import positive
from milnce.bundle import Bundle
from milnce.clips import check_clips, input_form
from milnce.embeddings import VideoEmbeddings
from milnce.errors import BackendError, BackendUnavailableError, InputError
from milnce.manifest import MODULES
from milnce.onnx_policy import refuse_external_data
from milnce.outputs import run_in_batches

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Self

    from milnce.backends import Backend, BackendChoice, Choices, CudaOptions
    from milnce.manifest import GraphFile
    from milnce.pipeline import FileEmbeddings
    from milnce.tokenizer import Tokenizer
    from milnce.video import Preset

    Float32Array = NDArray[np.float32]

_CLIPS_AT_ONCE = 8
_SENTENCES_AT_ONCE = 256


def load(  # noqa: PLR0913  # what to run, where, and how much of the machine it may take
    path: str | os.PathLike[str],
    *,
    backend: str = "auto",
    device: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    modules: Sequence[str] = ("video", "text"),
    plans: str | os.PathLike[str] | None = None,
    cuda: CudaOptions | None = None,
) -> Model:
    """Open a bundle and get ready to run it.

    Args:
        path: The bundle's folder.
        backend: "auto" for TensorRT where the bundle has plans for this GPU (`milnce build`), else ONNX Runtime on
            CUDA, else OpenVINO (on ARM ONNX Runtime) on the CPU, where NumPy runs the text tower and the projection, as
            it does on any machine if `modules` is "text"; or a name: "tensorrt", "onnxruntime", "openvino", "numpy".
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "fp32", "fp16", "bf16" or "int8" (after `milnce quantize`); None for that of the plans, or FP32 where
            there are none.
        threads: CPU threads for one run; None for every core. NumPy's matrix products take what the environment
            says: see `milnce.text_tower.TextTower`.
        modules: Towers opened now: "video" (in the first input form that the bundle lists), "text", "projection".
            Others are opened on first use.
        plans: Folder with the TensorRT plans; None for the bundle's own.
        cuda: How much of a GPU the model may take: `milnce.CudaOptions`.

    Returns:
        The model. `model.backend` and `model.choice_of("text")` say what was chosen and why.

    Raises:
        BundleNotFoundError: if there is no bundle.
        BundleError: if a file is missing, damaged or changed.
        BackendUnavailableError: if what is asked for cannot be had on this machine.
        BackendError: if the backend refuses a graph, or the GPU's memory is too small.
        InputError: if an argument is no such name or number.
    """
    if threads is not None:
        threads = positive("threads", threads)
    names = (modules,) if isinstance(modules, str) else tuple(modules)
    bundle = Bundle.open(path)
    # A model that opens its towers later needs plans of both all the same.
    choices = backends.Choices(
        bundle,
        backend=backend,
        device=device,
        precision=precision,
        plans=None if plans is None else Path(plans),
        modules=names,
    )
    model = Model(bundle, choices, threads=threads, cuda=cuda)
    try:
        for name in names:
            model.open(name)
    except BaseException:
        model.close()
        raise
    return model


class Model:
    """A bundle in a backend. Make one with `milnce.load`. May be used from several threads at once.

    Attributes:
        bundle: The bundle.
        tokenizer: The bundle's tokenizer.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: BackendChoice | Choices,
        *,
        threads: int | None = None,
        cuda: CudaOptions | None = None,
    ) -> None:
        self.bundle = bundle
        self._choices = backend if isinstance(backend, backends.Choices) else backends.Choices(bundle, chosen=backend)
        self.tokenizer: Tokenizer = bundle.tokenizer()
        self._threads = threads
        self._cuda = cuda
        self._lock = Lock()
        self._opened: dict[tuple[str, str], Backend] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"Model({self.bundle.manifest.name!r}, {self._choices.latest or 'nothing opened'})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the graphs. The model cannot be used afterwards; a second call does nothing."""
        with self._lock:
            self._closed = True
            for opened in self._opened.values():
                opened.close()
            self._opened.clear()

    @property
    def backend(self) -> BackendChoice:
        """What runs the video tower and why, a sentence as `str`; of a model for text alone, what runs that.

        Of a model for which neither was opened yet it is chosen now.

        Raises:
            BackendUnavailableError: if nothing here can run it.
        """
        with self._lock:
            return self._choices.latest or self._choices.main()

    @property
    def chosen(self) -> BackendChoice | None:
        """What `backend` is, or None while nothing was chosen, as nothing had to run."""
        return self._choices.latest

    @property
    def running(self) -> dict[str, BackendChoice]:
        """What runs each module that was asked for so far."""
        with self._lock:
            return self._choices.made()

    @property
    def precision(self) -> str:
        """The precision of the video tower; no backend is looked for where each of them would take the same."""
        with self._lock:
            return self._choices.precision

    def choice_of(self, module: str) -> BackendChoice:
        """Return what runs `module`, and why; `str()` of it is a sentence.

        Args:
            module: "video", "text" or "projection"; the last two are opened, as only then it is known.

        Raises:
            MilnceError: as `open`.
        """
        if module != "video":
            self.open(module)
        with self._lock:
            return self._choices.of(module)

    def open(self, module: str, *, input_form: str | None = None) -> Backend:
        """Return the backend that runs `module`, opened on first use.

        Args:
            module: "video", "text" or "projection".
            input_form: For video "uint8" or "float32"; None takes the first that the bundle lists.

        Raises:
            BundleError: if the bundle lacks that graph, or its file is damaged or changed.
            BackendUnavailableError: if the bundle has the module in another precision only.
            PlanError: if the model runs plans and there is none of this module; the message says how to build it.
            BackendError: if the backend refuses the graph, or the model is closed.
        """
        with self._lock:
            if self._closed:
                raise BackendError("the model is closed; load it again")
            if module not in MODULES:
                raise InputError(f"module {module!r} given; modules are {', '.join(MODULES)}")
            choice = self._choices.of(module)
            graph = self._graph(choice, module, input_form)
            key = (graph.module, graph.input_form)
            if key not in self._opened:
                try:
                    self._opened[key] = self._open(choice, graph)
                except backends.UnsuitableGraphError as error:
                    choice = self._choices.instead(module, str(error))
                    self._opened[key] = self._open(choice, self._graph(choice, module, input_form))
            return self._opened[key]

    def _graph(self, choice: BackendChoice, module: str, input_form: str | None) -> GraphFile:
        # The projection exists in FP32 alone: it is one small layer, and features on disk are float32. Only the video
        # tower is quantised: the text tower has little to compute.
        modules = {"fp16": ("video", "text"), "int8": ("video",)}.get(choice.precision, ())
        precision = choice.precision if module in modules else "fp32"
        held = [graph.precision for graph in self.bundle.manifest.graphs if graph.module == module]
        if held and precision not in held:
            other = next((name for name in ("fp32", "fp16") if name in held), held[0])
            cure = "quantise it: milnce quantize" if precision == "int8" else "export the bundle again"
            raise BackendUnavailableError(
                f"precision {choice.precision} needs {precision} graphs; bundle {str(self.bundle.path)!r} has "
                f"its {module} graphs in {' and '.join(dict.fromkeys(held))}. Ask for that: "
                f'load(..., precision="{other}") or --precision {other}; or {cure}'
            )
        return self.bundle.graph(module, precision=precision, input_form=input_form)

    def _open(self, choice: BackendChoice, graph: GraphFile) -> Backend:
        data: bytes | memoryview | None = None
        if choice.plans is None:
            data = self.bundle.view(graph) if backends.takes_views(choice) else self.bundle.read(graph)
            refuse_external_data(data, str(self.bundle.path / graph.file))
        return backends.open_graph(
            choice,
            data,
            graph,
            threads=self._threads,
            cuda=self._cuda,
            # Words, and the padding before them.
            index_limit=self.bundle.manifest.vocabulary.words + 1,
            bundle=self.bundle,
        )

    def encode_video(self, clips: object, *, batch_size: int | None = None, on_device: bool = False) -> VideoEmbeddings:
        """Embed clips.

        Args:
            clips: An array: uint8 (N, T, H, W, 3) RGB, or float32 (N, 3, T, H, W) RGB in [0, 1]. T, H and W even; the
                bundle's manifest has their ranges. On a GPU also an array that is there already, of any library with
                `__cuda_array_interface__` or DLPack; its values are not looked at.
            batch_size: Clips in one run of the graph; None for the largest batch that the backend runs at once, or
                8. On a CPU clips run one at a time whatever it is.
            on_device: Leave the embeddings on the GPU, as `milnce.device_arrays.DeviceArray`. They are not looked
                at for NaN or infinity.

        Returns:
            N embeddings in the order of the clips.

        Raises:
            InputError: if the array has another dtype, rank, order of channels, size or range; the message says
                which and how to cure it.
            BundleError: if the bundle has no graph for this input form.
            DeviceMemoryError: if the GPU has no memory for such a batch; smaller ones still run.
            NonFiniteError: if the graph gave NaN or infinity for one of the clips.
        """
        backend = self.open("video", input_form=input_form(clips))
        spec = backend.inputs[0]
        if isinstance(clips, np.ndarray):
            check_clips(clips, spec)
        if on_device or not isinstance(clips, np.ndarray):
            found = backend.run({spec.name: clips}, on_device=on_device)
            return VideoEmbeddings(found["video_embedding"], found["mixed_5c"])
        step = positive("batch_size", batch_size) if batch_size is not None else backend.largest_batch or _CLIPS_AT_ONCE
        results = run_in_batches(backend, clips, step)
        return VideoEmbeddings(results["video_embedding"], results["mixed_5c"])

    def encode_text(
        self,
        sentences: str | Sequence[str],
        *,
        max_words: int | None = None,
        batch_size: int | None = None,
        warn: bool = True,
    ) -> Float32Array:
        """Embed sentences.

        Args:
            sentences: One sentence, or N of them. Words that the vocabulary lacks are dropped;
                `model.tokenizer.unknown(sentence)` lists them.
            max_words: Words of a sentence that count; the bundle's value (16 in the official model) if None.
            batch_size: Sentences in one run of the graph; None for 256, and for all of them where NumPy runs them, as
                it is the faster the more it sees at once, in bounded memory.
            warn: Whether to warn of sentences with no known word.

        Returns:
            float32 (N, 512) in the order of the sentences; N = 1 for one string. Not normalised.

        Raises:
            InputError: if there is no sentence, or one is not text.

        Warns:
            UnknownWordsWarning: for a sentence with no known word.
        """
        step = None if batch_size is None else positive("batch_size", batch_size)
        tokens = self.tokenizer(sentences, max_words=max_words, warn=warn)
        backend = self.open("text")
        step = step or (len(tokens) if backend.splits_itself else _SENTENCES_AT_ONCE)
        return run_in_batches(backend, tokens, step)["text_embedding"]

    def project(self, mixed_5c: NDArray[Any], *, batch_size: int = 4096) -> Float32Array:
        """Turn stored `mixed_5c` features into embeddings, by the tower's last layer alone.

        Args:
            mixed_5c: float32 (N, 1024), as `encode_video` gave them.
            batch_size: Rows in one run of the graph.

        Returns:
            float32 (N, 512), what `encode_video` gives as `embedding`.

        Raises:
            InputError: if the array has another dtype or shape, or holds NaN or infinity.
            BundleError: if the bundle has no projection graph.
        """
        step = positive("batch_size", batch_size)
        backend = self.open("projection")
        if not isinstance(mixed_5c, np.ndarray):
            raise InputError(f"a numpy.ndarray expected: {backend.inputs[0]}; {type(mixed_5c).__name__} given")
        backend.inputs[0].check(mixed_5c)
        if not np.isfinite(mixed_5c).all():
            raise InputError("mixed_5c: holds NaN or infinity; give the features as encode_video made them")
        return run_in_batches(backend, mixed_5c, step)["video_embedding"]

    def embed_files(  # noqa: PLR0913 - what to embed, how, and how much of the machine it may take
        self,
        paths: Iterable[str | Path],
        *,
        preset: str | Preset | None = None,
        batch_size: int = 8,
        start_s: float | None = None,
        end_s: float | None = None,
        workers: int | None = None,
        stall_s: float = 60.0,
        decoder: str = "auto",
    ) -> Iterator[FileEmbeddings]:
        """Embed the windows of video files, streaming. See `milnce.pipeline.embed_files`.

        Args:
            paths: Video files.
            preset: How frames are taken: a name or a `Preset`; None for the bundle's default.
            batch_size: Clips in one run of the graph, and so the clips that are held in memory.
            start_s: Where to start, in seconds from the beginning of each file.
            end_s: Where to stop.
            workers: Processes that decode; 0 decodes in this one, None takes as many as suit the cores.
            stall_s: Seconds after which a process that makes no progress is ended; its file has failed then.
            decoder: "cpu"; "nvdec" for NVIDIA's decoder, if the model runs on a GPU; "auto" is "cpu" for now.

        Returns:
            An iterator over results in the order of the paths. A file that fails gives a result with its error.
        """
        from milnce.pipeline import embed_files  # noqa: PLC0415 - the pipeline needs the video extra

        return embed_files(
            self,
            paths,
            preset=preset,
            batch_size=batch_size,
            start_s=start_s,
            end_s=end_s,
            workers=workers,
            stall_s=stall_s,
            decoder=decoder,
        )
