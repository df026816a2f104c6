"""The README of a Triton model repository: how to start it, how to call it, what to know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from milnce.json_fields import brief
from milnce_convert.triton_config import batch_sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milnce.manifest import Manifest
    from milnce_convert.triton import TritonModel

_TEXT = """\
# milnce in Triton Inference Server

Written by `milnce export --triton` from the bundle {name} (model digest `{digest}`).

| model | runs | input | outputs | largest batch |
| --- | --- | --- | --- | ---: |
{rows}

The first axis of every tensor is the batch; `-1` is an axis that may vary. There is no ensemble of the two: a sentence
and a clip meet in a dot product of their embeddings, which the caller takes: embed each once, compare as often as
you like.

## Start

    docker run --rm{gpus} -p8000:8000 -p8001:8001 -p8002:8002 -v "$PWD":/models:ro \\
      nvcr.io/nvidia/tritonserver:<yy.mm>-py3 tritonserver --model-repository=/models{options}

## Call

`vocabulary.txt` in `milnce_text/` is the word list; sentences become ids by `milnce.Tokenizer` or by the rules of
docs/engine-abi.md. Clips are sampled as the bundle says: preset {preset}, {frames} frames of {size} x {size} pixels.

```python
import numpy as np
import tritonclient.http as triton  # pip install "tritonclient[http]"

from milnce import Tokenizer, get_preset
from milnce.video import iter_windows

client = triton.InferenceServerClient("localhost:8000")
words = open("milnce_text/vocabulary.txt", encoding="utf-8").read().removesuffix("\\n").split("\\n")
tokenizer = Tokenizer(words, max_words={max_words})


def run(model, name, dtype, array, output):
    tensor = triton.InferInput(name, list(array.shape), dtype)
    tensor.set_data_from_numpy(np.ascontiguousarray(array))
    return client.infer(model, [tensor]).as_numpy(output)


text = run("milnce_text", "tokens", "{tokens}", tokenizer(["cutting a tomato"]){to_int32}, "text_embedding")
for window in iter_windows("video.mp4", get_preset("{preset}", frames={frames}, size={size})):
    clip = window.clip[None]{to_float}
    video = run("milnce_video", "video", "{form}", clip, "video_embedding")
    print(window.start_s, window.end_s, text @ video.T)
```

{clip_megabytes:.1f} MB a clip go over the wire: a client on the same machine does better with Triton's shared memory.

## What to know
{notes}
Nothing here has been run by a Triton server yet: the configurations are checked against the fields of Triton's own
protobuf, and what its scheduler and backends do with them was read in their sources.
"""

_ANY_BATCH = """
- Batches: requests are joined as they come (`dynamic_batching`). Measure, then set `max_queue_delay_microseconds` and
  the largest batch; Triton's guide is docs/user_guide/batcher.md of its server repository.
"""
_BUCKETS = """
- Batches of {models}: the plans take exactly {batches} items. A request must have one of these batches, and
  `max_queue_delay_microseconds` must stay unset: then Triton joins requests to these sizes only. A request of
  another size fails, together with those it was joined with. Plans for every batch, tuned for these, are built into
  a folder of their own by: milnce build BUNDLE --plans FOLDER {option} {covering}
"""
_ONNX = """
- {models} run the ONNX graph: on a GPU through cuDNN, on a machine without one on the CPU. For TensorRT, build plans
  (`milnce build`) in the container that will run them and write this repository again.
"""
_PLANS = """
- {models} run TensorRT plans, which are native code: build them yourself, inside the same container (TensorRT
  {version} made these, and only that exact version runs them{compatible}), and mount them read-only. They were built
  on {gpus}; on another compute capability Triton finds no file, on another model the plan may be refused or slow.
"""
_PORTABLE = ": or a newer one, as they are version-compatible"


def readme(manifest: Manifest, models: Sequence[TritonModel]) -> str:
    """Return the README.

    Args:
        manifest: The bundle's manifest.
        models: The models of the repository, video first.
    """
    video = models[0]
    uint8 = video.graph.input_form == "uint8"
    with_plans = [model for model in models if model.plans]
    portable = any(plan.version_compatible for model in with_plans for plan in model.plans)
    sampling = manifest.sampling
    return _TEXT.format(
        name=brief(manifest.name),
        digest=manifest.model_digest,
        rows="\n".join(map(_row, models)),
        gpus=" --gpus=all" if with_plans else " [--gpus=all]",
        options=" \\\n      --backend-config=tensorrt,version-compatible=true" if portable else "",
        preset=sampling["preset"],
        frames=sampling["frames"],
        size=sampling["size"],
        max_words=manifest.vocabulary.max_words,
        tokens=str(models[1].config["input"][0]["data_type"]).removeprefix("TYPE_"),
        to_int32="" if models[1].config["input"][0]["data_type"] == "TYPE_INT64" else ".astype(np.int32)",
        to_float="" if uint8 else ".transpose(0, 4, 1, 2, 3).astype(np.float32) / np.float32(255)",
        form="UINT8" if uint8 else "FP32",
        clip_megabytes=sampling["frames"] * sampling["size"] ** 2 * 3 * (1 if uint8 else 4) / 1e6,
        notes=_notes(models),
    )


def covering_batches(sizes: Sequence[int]) -> str:
    """Return what `milnce build --batch` takes for profiles of every batch up to the largest size, tuned for each."""
    spans = []
    least = 1
    for size in sizes:
        spans.append(str(size) if least == size else f"{least}:{size}:{size}")
        least = size + 1
    return ",".join(spans)


def _row(model: TritonModel) -> str:
    def tensors(key: str) -> str:
        return ", ".join(f"{one['name']} {one['data_type']} {one['dims']}" for one in model.config[key])

    runs = f"{model.graph.file} ({model.graph.precision})"
    if model.plans:
        runs = f"{len(model.plans)} TensorRT {'plan' if len(model.plans) == 1 else 'plans'} of {runs}"
    cells = (f"`{model.name}`", runs, tensors("input"), tensors("output"), str(model.config["max_batch_size"]))
    return f"| {' | '.join(cells)} |"


def _notes(models: Sequence[TritonModel]) -> str:
    def names(some: Sequence[TritonModel]) -> str:
        return " and ".join(f"`{model.name}`" for model in some)

    onnx = [model for model in models if not model.plans]
    planned = [model for model in models if model.plans]
    notes = [_ANY_BATCH] if any(model.every_batch for model in models) else []
    for model in models:
        if not model.every_batch:
            sizes = batch_sizes([each for plan in model.plans for each in plan.profiles])
            option = "--batch" if model.graph.module == "video" else "--text-batch"
            listed = ", ".join(map(str, sizes))
            covering = covering_batches(sizes)
            notes.append(_BUCKETS.format(models=names([model]), batches=listed, option=option, covering=covering))
    if onnx:
        notes.append(_ONNX.format(models=names(onnx)))
    if planned:
        plans = [plan for model in planned for plan in model.plans]
        portable = _PORTABLE if all(plan.version_compatible for plan in plans) else ""
        gpus = ", ".join(sorted({str(plan.gpu) for plan in plans}))
        notes.append(
            _PLANS.format(models=names(planned), version=plans[0].library_version, compatible=portable, gpus=gpus)
        )
    return "".join(notes)
