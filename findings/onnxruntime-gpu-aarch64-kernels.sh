#!/usr/bin/env bash
# onnxruntime-gpu 1.31.1, the wheel for aarch64 (manylinux_2_34): its CUDA provider has machine code for compute capability
# 8.9, 9.0, 12.0 and 12.1, and no PTX that a driver could compile for others. pip installs it on every ARM machine with
# that glibc all the same: on a Jetson (8.7, 11.0) or beside an A100 (8.0) no kernel can start. Only the wheel's file is
# read: 212 MB are fetched, nothing of it runs, and the machine may be of any kind.
#
# Seen on 2026-12-01: machine code for 89, 90, 120, 121; PTX for none
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
  --python-version 3.12 --platform manylinux_2_34_aarch64 onnxruntime-gpu==1.31.1
python3 - <<'PY'
import struct
import zipfile
from pathlib import Path

(wheel,) = Path().glob("*.whl")
data = zipfile.ZipFile(wheel).read("onnxruntime/capi/libonnxruntime_providers_cuda.so")
PTX, MACHINE_CODE = 1, 2
found = {PTX: set(), MACHINE_CODE: set()}
# A fat binary: magic, version, size of its head, bytes that follow; then images, each with kind, size of its head, bytes
# that follow, and the architecture at byte 28.
place = data.find(struct.pack("<I", 0xBA55ED50))
while place >= 0:
    head, length = struct.unpack_from("<HQ", data, place + 6)
    image, end = place + head, place + head + length
    while image < end:
        kind, _, own, padded = struct.unpack_from("<HHIQ", data, image)
        found.setdefault(kind, set()).add(struct.unpack_from("<I", data, image + 28)[0])
        image += own + padded
    place = data.find(struct.pack("<I", 0xBA55ED50), end)
listed = {kind: ", ".join(map(str, sorted(found[kind]))) or "none" for kind in (MACHINE_CODE, PTX)}
print(f"machine code for {listed[MACHINE_CODE]}; PTX for {listed[PTX]}")
assert found == {PTX: set(), MACHINE_CODE: {89, 90, 120, 121}}, found
PY
