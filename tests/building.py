"""The real artifacts in the making, while other tests run."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path


class Build:
    """Artifacts in the making, at a lower priority than the tests."""

    def __init__(self) -> None:
        self._room = tempfile.TemporaryDirectory(prefix="real-artifacts-")
        self.folder = Path(self._room.name, "artifacts")
        self.log = Path(self._room.name, "log")
        command = [sys.executable, "-m", "converters", "build", "--out", str(self.folder)]
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                ["nice", *command] if shutil.which("nice") else command,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> int:
        return self._process.wait()

    def end(self) -> None:
        """Also where nobody waited for it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)  # and what it measures with
            self._process.wait()
        self._room.cleanup()
