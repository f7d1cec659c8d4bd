"""One run of an outside program in the background, and the temporary folder of its files."""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

GRACE_S = 10.0  # from the request to end to the kill: a program in the middle of a computation answers late


class RunError(Exception):
    """The program failed; the text is what it said, in one line."""


class Job:
    """A program that runs in the background.

    folder: temporary, for the files that the program reads and writes; only `close` deletes it.
    cancelled: whether `cancel` was called.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pcdiff-"))
        self.cancelled = False
        self._process: subprocess.Popen[bytes] | None = None
        self._kill_at = float("inf")
        self._read = 0

    def start(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts the program with this environment and no other variable. Raises RunError if it cannot be started."""
        # Files, not pipes: the program never waits for a reader, and no thread is needed.
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            try:
                self._process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    env={**environment, "PYTHONIOENCODING": "utf-8"},
                    creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                )
            except OSError as error:
                raise RunError(
                    f"{arguments[0] or 'no program'} cannot be started ({error.strerror}): expected the path of the "
                    "pcdiff program; enter it under Program"
                ) from error

    @property
    def running(self) -> bool:
        """Whether the program still runs. Kills it when the time to end by itself is over."""
        assert self._process is not None
        if self._process.poll() is not None:
            return False
        if time.monotonic() > self._kill_at:
            self._process.kill()
        return True

    def new_lines(self) -> list[str]:
        """The lines on stderr that are complete and were not returned before."""
        with self._stderr.open("rb") as file:
            file.seek(self._read)
            lines, end, _ = file.read().rpartition(b"\n")
        self._read += len(lines + end)
        return lines.decode("utf-8", "replace").splitlines()

    def answer(self) -> dict:
        """The line of JSON that the program printed. Raises RunError with its last message if it failed."""
        assert self._process is not None
        try:
            answer = json.loads(self._stdout.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            said = self._stderr.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            silent = f"the program ended with code {self._process.returncode} and said nothing"
            raise RunError(said[-1].removeprefix("pcdiff: ") if said else silent) from error
        if "error" in answer:
            raise RunError(answer["error"])
        return answer

    def cancel(self) -> None:
        """Asks the program to end (SIGTERM); `running` kills it if it has not within GRACE_S."""
        assert self._process is not None
        self.cancelled = True
        self._kill_at = time.monotonic() + GRACE_S
        self._process.terminate()

    def close(self) -> None:
        """Ends the program if it still runs, and deletes the temporary folder."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _stdout(self) -> Path:
        return self.folder / "stdout"

    @property
    def _stderr(self) -> Path:
        return self.folder / "stderr"
