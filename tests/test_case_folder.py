"""The folder of a case through crashes, races and signals: whole, old or new, and nothing left beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest

from pcdiff.errors import InputError
from pcdiff.files import sha256
from pcdiff.pipeline import case_folder as module
from pcdiff.pipeline.case_folder import case_folder, changed_implants
from pcdiff.pipeline.record import read_record, write_record

CALLS = ("rename", "replace", "link", "unlink", "rmdir", "mkdir", "open", "fsync")
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")


def put(folder: Path, value: str, overwrite: bool = True) -> None:
    """A case of two files that hold a value."""
    with case_folder(folder, overwrite) as part:
        (part / "implant.nrrd").write_text(value)
        (part / "candidates").mkdir()
        (part / "candidates" / f"{value}.nrrd").write_text(value)
        write_record(part, {"input": {"sha256": value}})


def state(folder: Path) -> tuple[str, frozenset[str]]:
    """Which case a folder holds, and its files; fails for a mixture."""
    record = read_record(folder)
    assert record is not None
    assert all(sha256(folder / name) == was for name, was in record["files"].items())
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return record["input"]["sha256"], frozenset(names - {"run.json"} - record["files"].keys())


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_implant_that_was_changed_by_hand_is_kept(tmp_path: Path, overwrite: bool) -> None:
    folder = tmp_path / "case"
    put(folder, "one")
    assert changed_implants(folder) == []
    for number, edit in enumerate(("by hand", "by hand again")):
        (folder / "implant.nrrd").write_text(edit)
        assert changed_implants(folder) == ["implant.nrrd"]
        put(folder, "one", overwrite)
        kept = ["implant.changed.nrrd", "implant.changed-2.nrrd"][: number + 1]
        assert state(folder) == ("one", frozenset(kept)), number
    put(folder, "one", overwrite)
    assert [(folder / name).read_text() for name in kept] == ["by hand", "by hand again"], "they stay"


def crash_at(number: int, act: Callable[[], None], **changes: Any) -> bool:
    """Runs in a process that ends without a word at its number-th call of `CALLS`; whether it came to that."""
    child = os.fork()
    if child == 0:
        count = 0

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count == number:
                    os._exit(9)
                return original(*arguments, **options)

            return call

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        for name, value in changes.items():
            setattr(module, name, value)
        act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@posix
@pytest.mark.parametrize("exchange", [True, False])
def test_a_crash_at_any_moment_leaves_the_old_case_or_the_new_one(exchange: bool, tmp_path: Path) -> None:
    changes = {} if exchange else {"_exchange": lambda *_: False}
    seen: set[tuple[str, frozenset[str]]] = set()
    number = 0
    while True:
        number += 1
        folder = tmp_path / str(number) / "case"
        put(folder, "old")
        (folder / "notes.txt").write_text("mine")
        crashed = crash_at(number, lambda folder=folder: put(folder, "new"), **changes)
        if exchange:
            seen.add(state(folder))  # without a start in between
        with pytest.raises(KeyError), case_folder(folder, overwrite=True):
            raise KeyError  # the next writer, who fails
        seen.add(state(folder))
        assert [path.name for path in folder.parent.iterdir()] == ["case"]
        if not crashed:
            break
    assert number > 20
    assert seen == {("old", frozenset({"notes.txt"})), ("new", frozenset({"notes.txt"}))}


def test_a_case_that_fails_takes_the_folders_along_that_it_made(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for folder in ("new/out/case", "old/case"):
        with pytest.raises(KeyError), case_folder(tmp_path / folder) as part:
            raise KeyError(part)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    with pytest.raises(KeyError), case_folder(tmp_path / "shared" / "case"):
        raise KeyError((tmp_path / "shared" / "other").touch())
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["other"]


def test_two_writers_never_mix(tmp_path: Path) -> None:
    folder = tmp_path / "case"
    put(folder, "first")
    for _ in range(10):
        together = Barrier(2)

        def write(value: str, together: Barrier = together) -> None:
            together.wait()
            put(folder, value)

        writers = [Thread(target=write, args=(value,)) for value in ("one", "two")]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert state(folder)[0] in ("one", "two")
        assert [path.name for path in tmp_path.iterdir()] == ["case"]


def test_a_living_writer_s_folder_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "case"
    with case_folder(folder) as part:
        put(folder, "other")
        assert part.is_dir()
        (part / "implant.nrrd").write_text("mine")
        write_record(part, {"input": {"sha256": "other"}})
    assert (folder / "implant.nrrd").read_text() == "mine"


def test_the_later_of_two_inputs_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "case"

    def write_slowly() -> None:
        with case_folder(folder) as part:
            put(folder, "theirs", overwrite=False)
            write_record(part, {"input": {"sha256": "mine"}})

    with pytest.raises(InputError, match="holds the result of another input"):
        write_slowly()
    assert state(folder)[0] == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["case"]


def test_other_files_their_folders_and_permissions_stay(tmp_path: Path) -> None:
    folder = tmp_path / "case"
    put(folder, "old")
    (folder / "mine" / "empty").mkdir(parents=True)
    (folder / "mine" / "note").write_text("1")
    (folder / "candidates" / "note").write_text("2")
    (folder / "link").symlink_to("mine/note")
    folder.chmod(0o750)
    put(folder, "new")
    assert (folder / "mine" / "empty").is_dir()
    assert (folder / "mine" / "note").read_text() == "1"
    assert (folder / "candidates" / "note").read_text() == "2"
    assert (folder / "link").is_symlink()
    assert not (folder / "candidates" / "old.nrrd").exists()
    assert folder.stat().st_mode & 0o777 == 0o750


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real" / "case", tmp_path / "case"
    put(real, "old")
    link.symlink_to(real)
    put(link, "new")
    assert link.is_symlink()
    assert state(real)[0] == "new"
    assert [path.name for path in real.parent.iterdir()] == ["case"]


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_leaves_nothing_behind(number: signal.Signals, code: int, tmp_path: Path) -> None:
    program = (
        "import signal, sys, time; from pathlib import Path; from pcdiff.cli import app\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "from pcdiff.pipeline.case_folder import case_folder\n"
        "def wait(*_, **__):\n"
        "    with case_folder(Path(sys.argv[1])) as part:\n"
        "        (part / 'half').touch(); print('written', flush=True); time.sleep(60)\n"
        "app.app = wait; app.main([])\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "case")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "written\n"
        began = time.monotonic()
        child.send_signal(number)
        try:
            assert child.wait(20) == code
        finally:
            child.kill()
        assert time.monotonic() - began < 10
        assert child.stderr is not None
        said = "" if number == signal.SIGINT else f"pcdiff: ended by {number.name} before it was done\n"
        assert child.stderr.read() == said
    assert list(tmp_path.iterdir()) == []


def test_the_record_is_valid_json_with_the_files(tmp_path: Path) -> None:
    put(tmp_path / "case", "one")
    record = json.loads((tmp_path / "case" / "run.json").read_text())
    assert set(record["files"]) == {"implant.nrrd", "candidates/one.nrrd"}
