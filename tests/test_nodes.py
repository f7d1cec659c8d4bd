"""A training of two processes, as on two machines, over gloo: one is killed, and both go on later."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from test_training_loop import ToyTask, at_step, weights

from pcdiff.errors import OutputError
from pcdiff.tensor_files import read_metadata
from pcdiff.training.loop import Loop, make_accelerator

KILLED = 5  # a step


def train(folder: Path, again: bool) -> None:
    """What each process does: a whole run and one in which the second process is killed; again: the rest of that."""
    accelerator = make_accelerator()
    assert accelerator.num_processes == 2
    accelerator.end_training = accelerator.wait_for_everyone  # it serves for two runs
    if not again:
        sys.stdout.write(final(ToyTask(folder / "whole"), accelerator))
    task = ToyTask(folder / "parts", checkpoint_minutes=1e-6)  # a checkpoint after each step
    if not again and accelerator.process_index == 1:
        task = at_step(task, KILLED, lambda: os.kill(os.getpid(), signal.SIGKILL))
    try:
        sys.stdout.write(final(task, accelerator))
    except OutputError as error:
        sys.exit(str(error))


def final(task: ToyTask, accelerator: object) -> str:
    """The weights at the end of a run."""
    return str([value.tolist() for value in weights(Loop(task, accelerator, progress=False).run())])  # type: ignore[arg-type]


def both(folder: Path, mode: str) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each process; what a launcher such as torchrun sets is set here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    environment = os.environ | place | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "LOCAL_RANK": "0"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), mode],
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *each) for process, each in zip(processes, said, strict=True)]


def test_a_process_that_dies_stops_the_others_and_all_go_on_later(tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    (code, whole, error), (killed, other, _) = both(tmp_path, "first")
    assert killed == -signal.SIGKILL
    assert (code, whole) == (1, other)
    assert f"the training stopped at step {KILLED - 1} (" in error
    assert "run the same command on all machines again: it goes on from " in error.splitlines()[-1]
    assert (read_metadata(tmp_path / "parts" / "checkpoint.safetensors") or {})["step"] == str(KILLED - 1)
    results = both(tmp_path, "again")
    assert [(code, printed) for code, printed, _ in results] == [(0, whole), (0, whole)], results


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2] == "again")
