"""The README of a DeepStream configuration: how to start it, where the embeddings are, what differs from milnce."""

from __future__ import annotations

from typing import TYPE_CHECKING

from milnce.json_fields import brief

if TYPE_CHECKING:
    from milnce.manifest import Manifest
    from milnce_convert.deepstream import DeepstreamFolder

_TEXT = """\
# milnce in DeepStream

Written by `milnce export --deepstream` from the bundle {name} (model digest `{digest}`):
{written}.

| file | what it is |
| --- | --- |
| `milnce_video.onnx` | {graph}: `video` float32 ({count}, 3, {frames}, {height}, {width}), RGB in [0, 1] |
| `config_preprocess.txt` | nvdspreprocess: centre square, scaling, 1/255, {frames} frames to a tensor |
| `config_infer.txt` | nvinfer: the graph as a strongly typed TensorRT engine, outputs as metadata |
| `vocabulary.txt` | the word list of the text tower |

## Start

For {count} {streams} of {stream_width}x{stream_height} at {stream_fps:g} frames a second; for others, write the folder
again (`--streams`, `--stream-size`, `--stream-fps`). The muxer must not scale: give it the streams' own size.

    cd /opt/nvidia/deepstream/deepstream/sources/apps/sample_apps/deepstream-3d-action-recognition
    make -C custom_sequence_preprocess install     # NVIDIA's library that gathers frames; once

    gst-launch-1.0 nvstreammux name=mux batch-size={count} width={stream_width} height={stream_height} ! \\
      nvdspreprocess config-file=config_preprocess.txt ! nvinfer config-file-path=config_infer.txt ! fakesink \\
      uridecodebin uri=file:///path/to/video.mp4 ! mux.sink_0

At the first start nvinfer builds the TensorRT engine and stores it beside the graph, under the name that
`model-engine-file` gives ("fp32" in it is nvinfer's `network-mode`, not the engine's precision, which is the graph's:
{precision}). An engine is native code and fits one GPU model and one TensorRT version: never copy one in.

## Where the embeddings are

In a probe behind nvinfer: `NvDsBatchMeta.batch_user_meta_list` has an entry of the type `NVDS_PREPROCESS_BATCH_META`;
its `GstNvDsPreProcessBatchMeta.roi_vector[i].roi_user_meta_list` has one of the type `NVDSINFER_TENSOR_OUTPUT_META`,
an `NvDsInferTensorMeta`. By the name in `output_layers_info[k].layerName`, `out_buf_ptrs_host[k]` is
{outputs}. A clip comes with the buffer of its last frame.
The dot product of `video_embedding` with a sentence's embedding is its score; sentences are embedded once, elsewhere
(`milnce.load(...).encode_text`, or the text model of `milnce export --triton`).

## What differs from milnce's own sampling

- Frames are counted, not timed: of each {step}, one is taken, which is {fps:.4g} a second; the bundle samples {wanted}.
- Pixels are scaled by NvBufSurfTransform (cubic), milnce scales by libavfilter (bicubic): near, not equal.
- What is left at the end of a stream, less than a clip, is not embedded; milnce fills up with black.

{frames} frames of one stream take {clip_megabytes:.1f} MB; the pool holds {pool} batches.

## What has not run

None of this has run in DeepStream. Keys and values are checked by tests against those that the parsers of DeepStream
9.1 read, and the graph with fixed sizes against the bundle's own in ONNX Runtime. `strongly-typed` is in DeepStream
9.1; where nvinfer does not know it, remove it and set `network-mode=2` for FP16.
"""


def readme(manifest: Manifest, written: DeepstreamFolder) -> str:
    """Return the README.

    Args:
        manifest: The bundle's manifest.
        written: What was written.
    """
    frames, height, width = written.sizes
    streams = written.streams
    return _TEXT.format(
        name=brief(manifest.name),
        digest=manifest.model_digest,
        written=written,
        graph=written.graph.file,
        precision=written.graph.precision,
        count=streams.count,
        streams="stream" if streams.count == 1 else "streams",
        frames=frames,
        height=height,
        width=width,
        stream_width=streams.width,
        stream_height=streams.height,
        stream_fps=streams.fps,
        outputs=" and ".join(f"`{spec.name}`, {spec.shape[1]} floats" for spec in written.graph.outputs),
        step=written.subsample + 1,
        fps=written.fps,
        wanted="them as they come" if written.preset_fps is None else f"{written.preset_fps:g}",
        clip_megabytes=3 * frames * height * width * 4 / 1e6,
        pool=8,
    )
