# ruff: noqa: T201 - a program to read and to run, and no package
"""PyCUDA and milnce on one GPU: GPUArrays go in, GPUArrays come out, and no array takes the way through the host.

    pip install "milnce[tensorrt,pycuda]"
    milnce build engines/s3d
    python examples/pycuda_interop.py engines/s3d "cutting a tomato" "open the door"

What to know:

- `pycuda.autoprimaryctx`, never `pycuda.autoinit`: milnce, PyTorch and CuPy use the GPU's primary context, and with a
  context of PyCUDA's own their memory and streams are invalid. It takes the first GPU (or CUDA_DEVICE); so does "cuda".
- A GPUArray goes in as it is, by its `__cuda_array_interface__`. It must be C-contiguous, of the dtype and shape that
  the graph takes, and live until the stream has passed the run.
- With `cuda_stream` the run takes its place in the caller's stream: after what that holds, before what comes next. The
  host waits for nothing. Without it, arrays are read after the default stream's work.
- A result is a `milnce.device_arrays.DeviceArray`: pointer, shape, dtype. A GPUArray over it has it as its `base`, and
  so keeps it alive. Hold it until the stream has passed what reads it: no kernel knows that its memory went away.

Written after PyCUDA 2026.1's sources, and run with stand-ins for PyCUDA and for the GPU
(tests/runtime/test_pycuda_example.py). It has not run on a GPU.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np

import milnce

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milnce.device_arrays import DeviceArray
    from milnce.model import Model


def as_gpuarray(result: DeviceArray) -> Any:  # noqa: ANN401 - PyCUDA is not typed
    """Return a GPUArray over the memory of a result: no copy, and the result lives as long as the GPUArray."""
    from pycuda.gpuarray import GPUArray  # noqa: PLC0415 - after the context was made

    return GPUArray(result.shape, result.dtype, gpudata=result.pointer, base=result)


def embed_on_gpu(model: Model, clips: Any, tokens: Any, stream: Any) -> tuple[Any, Any]:  # noqa: ANN401 - as above
    """Embed clips and sentences that are on the GPU.

    Args:
        model: A model on the GPU.
        clips: GPUArray, uint8 (N, T, H, W, 3).
        tokens: GPUArray, int64 (Q, max_words).
        stream: The stream that fills both, and in which everything here is enqueued.

    Returns:
        GPUArrays, float32 (N, D) and (Q, D), complete when the stream gets there. Hold them until it has passed
        whatever reads them.
    """
    video = model.open("video", input_form="uint8").run({"video": clips}, cuda_stream=stream.handle)
    text = model.open("text").run({"tokens": tokens}, cuda_stream=stream.handle)
    return as_gpuarray(video["video_embedding"]), as_gpuarray(text["text_embedding"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Score noise against sentences, on the GPU, and the same arrays from host memory beside it."""
    parser = argparse.ArgumentParser(description="GPUArrays in, GPUArrays out.")
    parser.add_argument("bundle", help="bundle folder, with plans for this GPU or for ONNX Runtime on CUDA")
    parser.add_argument("sentences", nargs="+")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--backend", default="auto", help="tensorrt or onnxruntime")
    options = parser.parse_args(arguments)

    import pycuda.autoprimaryctx  # noqa: PLC0415, F401 - makes the primary context the current one
    from pycuda import driver, gpuarray  # noqa: PLC0415

    with milnce.load(options.bundle, backend=options.backend, device="cuda") as model:
        print(model.backend)
        sampling = model.bundle.manifest.sampling
        shape = (options.clips, sampling["frames"], sampling["size"], sampling["size"], 3)
        clips = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        tokens = model.tokenizer(options.sentences)

        stream = driver.Stream()
        clips_there = gpuarray.to_gpu_async(clips, stream=stream)
        tokens_there = gpuarray.to_gpu_async(tokens, stream=stream)
        video, text = embed_on_gpu(model, clips_there, tokens_there, stream)
        scores = [[gpuarray.dot(sentence, clip, stream=stream) for clip in video] for sentence in text]
        stream.synchronize()  # only now are the scores there, and may the arrays be let go
        found = np.array([[score.get() for score in row] for row in scores], dtype=np.float32)

        expected = milnce.similarity(model.encode_text(options.sentences), model.encode_video(clips).embedding)
        for sentence, row in zip(options.sentences, found, strict=True):
            print(f"{sentence}: {', '.join(f'{score:.3f}' for score in row)}")
        print(f"largest difference from the same arrays in host memory: {np.abs(found - expected).max():.2g}")


if __name__ == "__main__":
    main()
