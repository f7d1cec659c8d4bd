"""Breaks one line of the core modules at a time and checks that a test fails.

    python tools/mutants.py              # all mutants of tests/mutants.yaml, about ten minutes on one core
    python tools/mutants.py --only 17    # one of them
    python tools/mutants.py --jobs 2

Each mutant is tested in a copy of the project in a temporary folder; the working tree is not touched. Before the
mutants, the tests must pass on the unchanged copy. The exit code is 1 if fewer than 36 of all mutants are killed, or if
the one of `--only` survives.

Why not mutmut: it derives thousands of mutants anew from each version of the code; here a short, fixed list of lines
must give figures that can be compared from version to version.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
LIST = ROOT / "tests" / "mutants.yaml"
MIN_KILLED = 36
TEST_TIMEOUT = 120  # seconds that one test may take: more than usual, the computer may be busy
RUN_TIMEOUT = 900  # seconds that all tests of a mutant may take
NOT_COPIED = (".git", ".venv", ".*_cache", ".coverage*", "__pycache__", "*.egg-info", "build", "dist", "out")


class MutantError(Exception):
    """A mutant that cannot be tested: its line has changed, or its tests do not run."""


@dataclass(frozen=True)
class Mutant:
    """One line of a file, without indentation and comment; what replaces it; the test files that should notice."""

    number: int
    file: str
    line: str
    mutated: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """killed_by: the test that failed first; empty for a mutant that survived."""

    mutant: Mutant
    killed_by: str
    seconds: float


def read_mutants(path: Path) -> list[Mutant]:
    """The mutants of a YAML list, numbered from 1."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        Mutant(number, entry["file"], entry["line"], entry["mutated"], tuple(entry["tests"].split()))
        for number, entry in enumerate(entries, start=1)
    ]


def mutated_source(mutant: Mutant, source: str) -> str:
    """The file's text with the mutant's line replaced. Raises MutantError unless the line occurs exactly once."""
    lines = source.splitlines(keepends=True)
    found = [number for number, line in enumerate(lines) if line.split("  #")[0].strip() == mutant.line]
    if len(found) != 1:
        raise MutantError(
            f"mutant {mutant.number}: expected one line in {mutant.file} that reads {mutant.line!r}, found "
            f"{len(found)}; the code has changed: correct the mutant in tests/mutants.yaml"
        )
    lines[found[0]] = lines[found[0]].replace(mutant.line, mutant.mutated)
    return "".join(lines)


def copy_project(root: Path, copy: Path) -> None:
    """All that the tests need, without environments, caches and outputs."""
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))


def run_tests(copy: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Exit code of pytest, and the test that failed first; a run that takes too long counts as a failed test."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider"]
    command += [f"--timeout={TEST_TIMEOUT}", *tests]
    # Without bytecode: a file that changes twice within a second could be run from a stale cache.
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=RUN_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return 1, f"no test: stopped after {RUN_TIMEOUT} s"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    if process.returncode not in (0, 1):
        raise MutantError(f"pytest {' '.join(tests)} ended with code {process.returncode}:\n{output[-2000:]}")
    return process.returncode, failed[1] if failed else ""


def check_mutant(mutant: Mutant, copy: Path) -> Outcome:
    """Runs the mutant's tests in a copy of the project, which is as before afterwards."""
    path = copy / mutant.file
    source = path.read_text(encoding="utf-8")
    start = time.monotonic()
    path.write_text(mutated_source(mutant, source), encoding="utf-8")
    try:
        code, killed_by = run_tests(copy, mutant.tests)
    finally:
        path.write_text(source, encoding="utf-8")
    return Outcome(mutant, killed_by if code else "", time.monotonic() - start)


def check_mutants(mutants: Sequence[Mutant], root: Path, jobs: int) -> list[Outcome]:
    """The outcome of each mutant, printed as soon as it is known.

    Raises MutantError for a mutant whose line has changed, and for tests that fail without any mutant.
    """
    for mutant in mutants:
        mutated_source(mutant, (root / mutant.file).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for job in range(jobs):
            copy_project(root, Path(folder) / str(job))
            copies.put(Path(folder) / str(job))
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        code, failed = run_tests(Path(folder) / "0", tests)
        if code:
            raise MutantError(f"{failed} fails without any mutant; mend it first")

        def work(mutant: Mutant) -> Outcome:
            copy = copies.get()
            try:
                outcome = check_mutant(mutant, copy)
            finally:
                copies.put(copy)
            print(row(outcome), flush=True)
            return outcome

        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(work, mutants))


def row(outcome: Outcome) -> str:
    """One line of the table."""
    mutant, verdict = outcome.mutant, "killed  " if outcome.killed_by else "survived"
    detail = outcome.killed_by or f"{mutant.line}  ->  {mutant.mutated}"
    return f"{mutant.number:3d}  {verdict}  {outcome.seconds:5.0f} s  {mutant.file:42s}  {detail}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code, see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="the mutant of this number")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tested at a time (default: 1)")
    options = parser.parse_args(arguments)
    mutants = [mutant for mutant in read_mutants(LIST) if options.only in (None, mutant.number)]
    if not mutants:
        parser.error(f"--only: no mutant {options.only} in tests/mutants.yaml")
    try:
        outcomes = check_mutants(mutants, ROOT, options.jobs)
    except MutantError as error:
        print(error, file=sys.stderr)
        return 2
    killed = sum(bool(outcome.killed_by) for outcome in outcomes)
    needed = MIN_KILLED if options.only is None else 1
    print(f"{killed} of {len(mutants)} killed, at least {needed} needed")
    return int(killed < needed)


if __name__ == "__main__":
    sys.exit(main())
