"""Files on a shared disk are written whole or not at all, even by several writers at the same time."""

from __future__ import annotations

import csv
import errno
import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from pcdiff.errors import InputError, error_line, exit_code
from pcdiff.files import sha256, write_csv, written_beside


def test_threads_that_write_one_file_do_not_mix(tmp_path: Path) -> None:
    together = Barrier(8)

    def write(letter: str) -> Path:
        with written_beside(tmp_path / "a.bin") as part:
            part.write_text(letter * 1000)
            together.wait(timeout=5)  # all have written, none has finished
            assert part.read_text() == letter * 1000
        return part

    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(write, "abcdefgh"))
    assert len(set(parts)) == 8
    text = (tmp_path / "a.bin").read_text()
    assert text == text[0] * 1000
    assert list(tmp_path.iterdir()) == [tmp_path / "a.bin"]


def test_the_temporary_name_keeps_the_suffix(tmp_path: Path) -> None:
    with written_beside(tmp_path / "a.nii.gz") as part:
        assert part.parent == tmp_path
        assert part.name.startswith(".")
        assert part.name.endswith(".a.nii.gz")


def test_no_text_of_a_table_is_a_formula(tmp_path: Path) -> None:
    texts = ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\uff1d1", "a-b", "it's", 'a"b;=1', ""]
    write_csv(tmp_path / "a.csv", ["text", "number"], [[text, -2.5] for text in texts])
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["text", "number"]
    assert [row[0] for row in rows] == [f"'{text}" for text in texts[:6]] + texts[6:]
    assert {row[1] for row in rows} == {"-2.5"}
    assert '"a""b;=1",-2.5' in (tmp_path / "a.csv").read_text(encoding="utf-8")  # one cell where `;` divides, too


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError), written_beside(path) as part:
        raise KeyError(part.write_text("new"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="needs locks")
def test_what_a_dead_writer_left_is_removed_and_a_living_one_s_is_not(tmp_path: Path) -> None:
    program = "import sys, pathlib; from pcdiff.files import written_beside\n"
    program += "with written_beside(pathlib.Path(sys.argv[1])) as part: print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(tmp_path / "a.txt")]
    other = tmp_path / f".{'0' * 32}.b.txt"
    other.touch()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        (part,) = tmp_path.glob(".*.a.txt")
        with written_beside(tmp_path / "a.txt"):
            assert part.exists()
        writer.kill()
    assert part.exists()
    with written_beside(tmp_path / "a.txt") as own:
        assert [*tmp_path.glob(".*.a.txt")] == [own]
    assert sorted(tmp_path.iterdir()) == [other, tmp_path / "a.txt"]


def test_the_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"bone")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"bone").hexdigest()
    with pytest.raises(InputError, match="found none"):
        sha256(tmp_path / "b")


def test_a_full_disk_is_told_with_the_file_s_name_and_its_own_exit_code(tmp_path: Path) -> None:
    path = tmp_path / "implant.nrrd"

    def write() -> None:
        with written_beside(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write fails, without a name

    with pytest.raises(OSError, match="No space left") as caught:
        write()
    assert error_line(caught.value) == f"{path}: No space left on device; free space, or write elsewhere"
    assert exit_code(caught.value) == 3
    assert exit_code(FileNotFoundError(errno.ENOENT, "", str(path))) == 1
    assert list(tmp_path.iterdir()) == []
