"""`milnce` as a process: exit codes, pure stdout, interruptions that leave nothing, no tracebacks, lean imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from helpers.commands import command, environment
from helpers.processes import heed_interrupts, wait_for
from helpers.videos import loop_video, real_video, real_videos
from milnce.features import read_features

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.commands import Ran, Tiny

    Run = Callable[..., Ran]

pytestmark = pytest.mark.alone


def test_stdout_is_one_json_document_and_nothing_else(tiny: Tiny, tmp_path: Path, run_process: Run) -> None:
    out = tmp_path / "f.npz"
    for arguments in (
        ["info", tiny.path, "--json"],
        ["embed", "--bundle", tiny.path, "--out", out, *real_videos(), "--json"],
        ["search", "--bundle", tiny.path, "a nonsense tomato", *real_videos(), "--json"],
        ["doctor", "--bundle", tiny.path, "--json"],
    ):
        result = run_process(*arguments)
        assert result.code == 0, result.stderr
        assert isinstance(json.loads(result.stdout), dict)
    result = run_process("info", tmp_path, "--json")
    assert result.code == 1
    assert json.loads(result.stdout)["error"]["type"] == "BundleNotFoundError"


def test_the_table_is_on_stdout_and_talk_on_stderr(tiny: Tiny, run_process: Run) -> None:
    result = run_process("search", "--bundle", tiny.path, "someone cutting", real_video("bikes"), "--top", 2)
    assert result.code == 0
    assert "bikes.mp4" in result.stdout
    assert " on cpu in fp32" in result.stderr
    assert " on cpu in fp32" not in result.stdout


def test_an_ascii_terminal_gets_a_table_too(tiny: Tiny, run_process: Run) -> None:
    result = run_process(
        "search", "--bundle", tiny.path, "run", real_video("bikes"), "--top", 2, PYTHONIOENCODING="ascii"
    )
    assert result.code == 0, result.stderr
    assert "bikes.mp4" in result.stdout
    assert "############" in result.stdout
    assert result.stdout.isascii()


def test_errors_are_one_message_without_a_traceback_unless_asked_for(tmp_path: Path, run_process: Run) -> None:
    result = run_process("info", tmp_path)
    assert result.code == 1
    assert result.stderr.startswith("Error: no milnce bundle at ")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    for shown in (run_process("--debug", "info", tmp_path), run_process("info", tmp_path, MILNCE_DEBUG="1")):
        assert shown.code == 1
        assert "Traceback" in shown.stderr
        assert "BundleNotFoundError" in shown.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")  # noqa: PTH110
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_under_stdout_is_one_message(options: list[str], tiny: Tiny) -> None:
    buffered = environment(PYTHONUNBUFFERED="")  # what stdout holds is tried again at exit
    with open("/dev/full", "w") as full:  # noqa: PTH123
        ended = subprocess.run(
            command("info", tiny.path, *options),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=buffered,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr == "Error: No space left on device; can the output be written, and the input be read?\n"


def test_a_reader_that_goes_away_is_no_error(tiny: Tiny) -> None:
    buffered = environment(PYTHONUNBUFFERED="")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        ended = subprocess.run(
            command("info", tiny.path), stdout=closed, stderr=subprocess.PIPE, text=True, env=buffered, check=False
        )
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a real video of some minutes, so that a process can be stopped in the middle of it."""
    return loop_video(real_video("bigbuckbunny"), tmp_path_factory.mktemp("long") / "long.mp4", 100)


@pytest.mark.parametrize("name", ["f.npz", "f.parquet"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_embed_leaves_nothing(
    number: signal.Signals, code: int, name: str, tiny: Tiny, long_video: Path, tmp_path: Path
) -> None:
    arguments = ["embed", "--bundle", tiny.path, "--out", tmp_path / name, "--preset", "sliding"]
    process = subprocess.Popen(
        # A finished file first, so that rows are on disk when the signal comes.
        command(*arguments, real_video("bikes"), long_video, "--stride-frames", 1, "--batch-size", 2),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,  # noqa: PLW1509  the tests have one thread here
    )
    try:
        wait_for(lambda: list(tmp_path.glob(".f.*/*")), process)
        time.sleep(0.5)
        assert process.poll() is None, "the video was too short to be stopped in the middle"
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert stdout == ""
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []
    if number == signal.SIGINT:
        assert stderr.splitlines()[-1] == "Interrupted; nothing half-written is left."


@pytest.mark.parametrize(
    "patch",
    [
        "sys.meta_path.insert(0, type('F', (), {'find_spec': stop}))",
        "import typer.core; typer.core.TyperGroup.make_context = stop",
        "import milnce.cli.search; milnce.cli.search._check_outputs = stop",
    ],
    ids=["while the commands load", "while typer reads the arguments", "in a command"],
)
def test_ctrl_c_is_one_line_at_any_moment(patch: str) -> None:
    program = (
        "import os, signal, sys\n"
        "sys.argv = ['milnce', 'search', 'run', 'a.mp4', '--bundle', 'b']\n"
        "def stop(*_, **__): os.kill(os.getpid(), signal.SIGINT)\n"
        "from milnce.cli import main\n"
        f"{patch}\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=heed_interrupts,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted; nothing half-written is left.\n")


def test_an_interrupted_embed_keeps_the_old_file(
    tiny: Tiny, long_video: Path, tmp_path: Path, run_process: Run
) -> None:
    out = tmp_path / "f.npz"
    arguments = ["embed", "--bundle", tiny.path, "--out", out]
    assert run_process(*arguments, real_video("bikes")).code == 0
    before = out.read_bytes()
    process = subprocess.Popen(
        command(
            *arguments, real_video("bikes"), long_video, "--overwrite", "--preset", "sliding", "--stride-frames", 1
        ),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,  # noqa: PLW1509  the tests have one thread here
    )
    try:
        wait_for(lambda: list(tmp_path.glob(".f.*/*")), process)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]
    assert out.read_bytes() == before
    assert len(read_features(out).path) == 10


def test_help_and_doctor_import_nothing_heavy() -> None:
    heavy = ["torch", "onnx", "onnxruntime", "openvino", "av", "PIL", "pyarrow", "milnce_convert"]
    program = (
        "import sys; sys.argv = ['milnce', 'search', '--help']\n"
        "from milnce.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        f"loaded = [name for name in {heavy} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
