#!/usr/bin/env bash
# PyAV 18.1.0 (FFmpeg 8.1.2), x86-64: to make RGB of a 4:2:0 picture without changing its size, libswscale leaves its
# scaler out and repeats each row of chroma. The flag accurate_rnd, which sounds like rounding, takes the scaler instead,
# which interpolates chroma between rows, with overshoot: beside an edge in colour, pixels change by tens of levels. So a
# filter chain with `scale=224:224` treats a video that has 224x224 already, and has no such flag, unlike every other video.
#
# Seen on 2026-12-01, red in four rows across the edge:
#   as ffmpeg does: [228, 228, 69, 69]
#   accurate_rnd: [240, 194, 102, 55]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 'numpy<3'
"$folder/venv/bin/python" - <<'PY'
import av
import numpy as np

frame = av.VideoFrame(64, 64, "yuv420p")
y, u, v = frame.planes
red = np.full((v.height, v.line_size), 90, np.uint8)
red[: v.height // 2 - 1] = 190  # an edge in red between two rows; brightness is the same everywhere
for plane, values in ((y, np.full(y.buffer_size, 128, np.uint8)), (u, np.full(u.buffer_size, 128, np.uint8)), (v, red)):
    plane.update(values.tobytes())
frame.pts = 0


def red_beside_the_edge(flags):
    graph = av.filter.Graph()
    source = graph.add("buffer", "video_size=64x64:pix_fmt=yuv420p:time_base=1/1:pixel_aspect=1/1")
    scale = graph.add("scale", f"w=64:h=64:flags={flags}")
    graph.link_nodes(source, scale, graph.add("format", "rgb24"), graph.add("buffersink"))
    graph.configure()
    graph.vpush(frame)
    return graph.vpull().to_ndarray()[28:32, 32, 0].tolist()


plain, accurate = red_beside_the_edge("bicubic"), red_beside_the_edge("bicubic+accurate_rnd")
print("as ffmpeg does:", plain)
print("accurate_rnd:", accurate)
assert (plain, accurate) == ([228, 228, 69, 69], [240, 194, 102, 55]), (plain, accurate)
PY
