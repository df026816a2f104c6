"""One decoding process: started with the caller's interpreter and modules, never from the caller's main program."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import milnce
from milnce.decoding.descriptors import above_standard
from milnce.decoding.messages import Channel

if TYPE_CHECKING:
    from milnce.decoding.worker import Setup

WORKER = "milnce.decoding.worker"

# The current folder is no place for modules. What the caller has on its path beyond an interpreter's own comes last,
# where it hides nothing; milnce is taken from where the caller has it, installed, in a checkout or in an archive.
_PROGRAM = """
import sys
sys.path[:] = filter(None, sys.path)
import importlib, json
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
home, module, *paths = json.loads(sys.argv[1])
sys.path += [path for path in paths if path not in sys.path]
spec = PathFinder.find_spec("milnce", [home])
sys.modules["milnce"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["milnce"])
importlib.import_module(module).main()
"""

# These libraries start a thread a core when they are imported, which decoding has no use for.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerProcess:
    """A decoding process and the connection to it.

    It is no `multiprocessing.Process`: "spawn" runs the caller's main program again, "fork" copies locks of libraries
    that have threads. It has a session of its own, so that Ctrl-C in a terminal reaches the caller only.

    Attributes:
        channel: The connection.
        pid: Its process id.

    Args:
        setup: What it must know.

    Raises:
        OSError: if the system starts no more processes.
    """

    def __init__(self, setup: Setup) -> None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = Channel(ours)
        try:
            # The number must not be one that standard input is given in the process.
            with socket.socket(fileno=above_standard(its.detach())) as its:
                self._process = subprocess.Popen(  # noqa: S603 - this interpreter and this package
                    [sys.executable, *_interpreter_flags(), "-c", _PROGRAM, _paths(), str(its.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(its.fileno(), setup["memory"]),
                    start_new_session=True,
                    env={**os.environ, **dict.fromkeys(_ONE_THREAD, "1")},
                )
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        self.pid = self._process.pid
        try:
            # One that has ended is found out by whoever reads what it says to the end, and how it did.
            with suppress(BrokenPipeError, ConnectionResetError):
                self.channel.send("setup", setup)
        except BaseException:
            self.kill()
            self._process.wait()
            raise

    def stop(self) -> None:
        """End the process at once. What it said before can still be read."""
        with suppress(ProcessLookupError):
            self._process.kill()

    def kill(self) -> None:
        """Close the connection and end the process at once. A second call does nothing."""
        self.channel.close()
        self.stop()

    def has_ended(self, *, within_s: float = 0.0) -> bool:
        """Whether the process is gone, and so can write nothing any more."""
        if within_s:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(within_s)
        return self._process.poll() is not None

    def describe_end(self, *, within_s: float = 0.0) -> str:
        """Return in words how the process ended, waiting for that a little."""
        self.has_ended(within_s=within_s)
        code = self._process.poll()
        if code is None:
            return "closed its connection"
        if code >= 0:
            return f"ended with exit code {code}"
        with suppress(ValueError):
            return f"was ended by signal {-code} ({signal.Signals(-code).name})"
        return f"was ended by signal {-code}"


def _interpreter_flags() -> list[str]:
    """Return the options with which this interpreter decides where modules and text encodings come from."""
    flags = {"-E": sys.flags.ignore_environment, "-s": sys.flags.no_user_site, "-B": sys.flags.dont_write_bytecode}
    return [name for name, given in flags.items() if given] + ["-X", f"utf8={sys.flags.utf8_mode}"]


def _paths() -> str:
    home = str(Path(str(milnce.__file__)).parents[1])
    return json.dumps([home, WORKER, *(os.path.abspath(path) for path in sys.path if path)])  # noqa: PTH100 - text
