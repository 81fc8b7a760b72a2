"""A server that can lie, be killed and be started again on the same socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.support.commands import ROOT
from tests.support.inference_server import API_KEY, KEY, wait_until_up


class RestartableServer:
    """Runs `serve_liar` on `listener`, which stays open, as a launcher keeps its server's socket.

    While no process runs, a client can connect but gets no answer.
    """

    def __init__(self, allowed: Path, listener: socket.socket, lie_file: Path) -> None:
        self.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._allowed = allowed
        self._listener = listener
        self._lie_file = lie_file
        self.lie("")
        self.start()

    def lie(self, lie: str) -> None:
        """Make it do `lie` (see `serve_liar.LIES`) at the next load; "" makes it honest."""
        self._lie_file.write_text(lie)

    def start(self) -> None:
        descriptor = self._listener.fileno()
        arguments = [str(descriptor), str(self._allowed), str(self._lie_file)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.serve_liar", *arguments],
            cwd=ROOT,
            env=os.environ | {API_KEY: KEY},
            pass_fds=[descriptor],
        )

    def ensure_up(self) -> None:
        """Make it honest and running, and return once it is healthy."""
        self.lie("")
        if self.process.poll() is not None:
            self.start()
        wait_until_up(self)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
