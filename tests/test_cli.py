"""The command line, in process: wrong ones, errors, help; and what a process does to its surroundings."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from stub_method import Run

import pcdiff
from pcdiff import __version__
from pcdiff.cli import app as cli
from pcdiff.cli.train import recipe_file
from pcdiff.data.craniotomy import KINDS
from pcdiff.files import sha256, shipped_file
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import write_volume
from pcdiff.methods.registry import METHODS, MethodEntry
from pcdiff.reconstruct import BACKENDS


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("design", "a.nrrd", "--method", "guess", "-o", "out"), "unknown method 'guess'"),
        (("design", "a.nrrd", "--weights", "none.safetensors", "-o", "out"), "found none"),
        (("design", "a.nrrd", "--device", "abacus", "-o", "out"), "device 'abacus': expected cpu, cuda"),
        (("demo", "--method", "guess", "-o", "out"), "unknown method 'guess'"),
        (("evaluate", "--data", "none"), "none: expected a data set in a layout"),
        (("evaluate", "--data", "none", "--suite", "odd"), "unknown variant 'odd'"),
        (("evaluate", "--data", "none", "--weights", "a"), "--weights belong to one method"),
        (("evaluate", "--data", "none", "--method", "prior,guess"), "unknown method 'guess'"),
        (("train", "none.yaml"), "expected a YAML recipe"),
        (("train", "none.yaml", "--set", "steps"), "expected KEY=VALUE, got 'steps'"),
        (("simulate", "none.nrrd", "-o", "out"), "none.nrrd: expected an image file, found none"),
        (("prepare", "none", "-o", "cache"), "none: expected a data set in a layout"),
        (("check", "none.stl", "--skull", "none.nrrd"), "none.nrrd: expected an image file, found none"),
        (
            ("check", "none.stl", "--skull", "none.nrrd", "--criteria", "none.yaml"),
            "expected a YAML file with lines such as",
        ),
        (("design", "a.nrrd", "-o", "out", "--clearance", "60"), "--clearance: expected 0 to 5 mm"),
        (("design", "a.nrrd", "-o", "out", "--thickness", "thin"), "--thickness: expected bone"),
        (("design", "a.nrrd", "-o", "out", "--drain-holes", "2"), "--drain-holes: expected DIAMETER@SPACING"),
        (("view", "none"), "none: expected a case folder"),
        (("view", "/"), "/: expected a case folder"),
        (("report", "/proc"), "/proc: expected a case folder"),
        (("design", "a.nrrd", "-o", "out", "--weights", "/"), "/: expected a file, got a folder"),
        (("design", "a.nrrd", "-o", "out", "--criteria", "/"), "/: expected a YAML file with lines such as"),
        (("train", "/"), "/: expected a YAML recipe"),
        (("import-checkpoint", "/", "-o", "w.safetensors"), "/: expected a checkpoint"),
        (("prepare", "/proc", "-o", "cache"), "/proc: expected a data set in a layout"),
    ],
)
def test_an_input_error_is_code_2_and_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, printed = run(*arguments)
    assert code == 2
    assert line in printed.splitlines()[-1]
    assert "Traceback" not in printed
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("comapre",), "no such command 'comapre'. Did you mean 'compare', 'score'? See pcdiff --help"),
        (("export", "hubb"), "no such command 'hubb'. Did you mean 'hub'? See pcdiff export --help"),
        (
            ("design", "--ensembel", "3"),
            "no such option: --ensembel (Possible options: --ensemble, --seed). See pcdiff",
        ),
        (("design", "a.nrrd"), "missing option '-o' / '--out'. See pcdiff design --help"),
        (("design", "a.nrrd", "-o", "out", "--ensemble", "0"), "invalid value for '--ensemble': "),
        (("design", "a.nrrd", "-o", "out", "--device"), "option '--device' requires an argument. See pcdiff --help"),
        (("info", "a.nrrd", "b.nrrd"), "got unexpected extra argument(s) (b.nrrd). See pcdiff info --help"),
    ],
)
def test_a_wrong_command_line_is_code_2_and_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], line: str
) -> None:
    assert run(*arguments)[0] == 2
    monkeypatch.setenv("PCDIFF_DEBUG", "1")  # which shows where our own code fails
    code, said, printed = run(*arguments)
    assert (code, said, printed.count("\n")) == (2, "", 1)
    assert printed.startswith(f"pcdiff: {line}")


def test_an_error_of_a_command_line_is_known_by_its_message_and_not_by_its_class(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions of typer raise those of click, which have the same methods and another base."""

    class OfClick(Exception):
        def format_message(self) -> str:
            return "Missing argument 'CASE'."

    def raise_it(**_: object) -> None:
        raise OfClick

    monkeypatch.setattr("pcdiff.cli.app.app", raise_it)
    assert run("view") == (2, "", "pcdiff: missing argument 'CASE'. See pcdiff --help\n")


def test_without_arguments_the_help_is_printed(run: Run) -> None:
    for arguments in ((), ("export",)):
        code, said, printed = run(*arguments)
        assert (code, printed) == (2, "")
        assert "Usage: pcdiff" in said


def test_a_new_process_prints_an_error_in_one_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pcdiff",
        "design",
        "none.nrrd",
        "--method",
        "prior",
        "-q",
        "-o",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("pcdiff: none.nrrd: expected")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("program", "code"), [("print('no', file=sys.stderr); sys.exit(2)", 0), ("pass", 1)])
def test_an_evaluation_succeeds_if_all_negative_controls_are_refused(
    run: Run, case: tuple[Volume, Volume], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, code: int
) -> None:
    for part, volume in zip(("defective_skull", "implant"), case, strict=True):
        (tmp_path / "data" / part).mkdir(parents=True)
        write_volume(volume, tmp_path / "data" / part / "001.nrrd")
    monkeypatch.setattr("pcdiff.evaluation.measure.COMMAND", (sys.executable, "-S", "-c", f"import sys; {program}"))
    where = ("--data", tmp_path / "data", "-o", tmp_path / "out", "--suite", "no_defect,jaw")
    got, printed, _ = run("evaluate", *where, "--method", "prior,diffusion", "--ensemble", 3, "--workers", 2)
    assert got == code
    assert f"correctly refused: diffusion on jaw: {1 - code} of 1" in printed
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["suite"], results["ensemble"], results["workers"]) == ("no_defect,jaw", 3, 2)
    shipped = {
        name: sha256(Path(pcdiff.__file__).parent / "weights" / name) for name in results["weights"]["diffusion"]
    }
    assert results["weights"]["diffusion"] == shipped
    assert len(shipped) == 3
    assert results["weights"]["prior"] == {"prior.safetensors": shipped["prior.safetensors"]}


def test_the_help_of_train_names_the_shipped_recipes(run: Run) -> None:
    _, printed, _ = run("train", "--help")
    words = set(re.findall(r"\w+", printed))
    assert words >= {path.stem for path in shipped_file("configs").glob("*.yaml")}
    (named,) = re.findall(r"shipped recipe, such as (\w+)\.", " ".join(re.sub("[│ \n]+", " ", printed).split()))
    assert recipe_file(named).is_file()


def test_train_passes_the_recipe_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("method: diffusion\nrun: {data: a, cache: b, out: c}\n")
    train = type(sys)("pcdiff.training.surface.train")
    train.train = lambda config, progress: f"{config.optimiser.steps} {config.run.out} {progress}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pcdiff.training.surface.train", train)
    code, printed, _ = run("train", recipe, "--set", "optimiser.steps=7", "--set", "run.out=d", "-q")
    assert (code, printed) == (0, "7 d False\n")
    code, _, printed = run("train", recipe, "--set", "optimiser.stops=7")
    assert code == 2
    assert "optimiser.stops" in printed
    code, printed, _ = run("train", "diffusion", "--set", "optimiser.steps=8", "--set", "run.out=e", "-q")
    assert (code, printed) == (0, "8 e False\n")
    code, _, printed = run("train", "difusion")
    assert code == 2
    assert f"one of {', '.join(sorted(path.stem for path in shipped_file('configs').glob('*.yaml')))}, " in printed
    monkeypatch.setitem(sys.modules, "pcdiff.training.surface.train", None)
    assert run("train", recipe)[0] == 1


def test_help_names_every_choice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, printed, _ = run("--help")
    assert code == 0
    assert "Not a medical device" in printed
    assert " sample " not in printed  # the earlier name of design still works, but is not listed
    for command in ("design", "info", "check", "demo", "simulate", "prepare", "train", "evaluate", "view", "report"):
        assert f" {command} " in printed
    assert run("sample", "--help")[1] == run("design", "--help")[1].replace("pcdiff design [", "pcdiff sample [")
    assert run("--version") == (0, f"pcdiff {__version__}\n", "")
    for command, choices in (("design", (*METHODS, *BACKENDS)), ("simulate", KINDS)):
        printed = run(command, "--help")[1]
        assert all(choice in printed for choice in choices)


def test_help_and_doctor_list_the_methods_of_other_packages(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    entry = MethodEntry("theirs", "from the package theirs", "pcdiff.methods.prior:load", licence="BSD-3-Clause")
    monkeypatch.setattr("pcdiff.methods.registry.installed_methods", lambda: {"theirs": entry})
    monkeypatch.setattr("pcdiff.cli.doctor.installed_methods", lambda: {"theirs": entry})
    monkeypatch.setattr("pcdiff.cli.doctor.requirements", lambda: {"": ["numpy"]})
    for command in ("design", "demo", "evaluate"):
        shown = " ".join(run(command, "--help")[1].replace("│", " ").split())
        assert "theirs (from the package theirs)" in shown
    listed = " ".join(run("doctor")[1].split())
    assert "ok method theirs from the package theirs; licence: BSD-3-Clause" in listed


def test_each_example_in_the_help_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for name, command in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        printed = [line.strip() for line in run(name, "--help")[1].splitlines()]
        examples = [line.strip() for line in (command.help or "").splitlines() if line.strip().startswith("pcdiff ")]
        assert all(example in printed for example in examples), name
        assert examples or "checkpoint" in name


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_a_command_uses_the_memory_again_that_it_has_freed() -> None:
    code = (
        "import resource, numpy as np; from pcdiff.cli.app import _options; _options();"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt; before = faults();"
        "[[np.ones(2**20) for _ in range(8)].clear() for _ in range(20)];"
        "print((faults() - before) * resource.getpagesize())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2 * 8 * 2**23  # twice the 64 MB that are in use at once


def test_a_command_looks_for_garbage_rarely_and_not_at_its_end() -> None:
    code = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_threshold()[0] > 10_000, gc.get_freeze_count() > 0));"
        "from pcdiff.cli.app import _options; _options()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_commands_load_their_libraries_with_threads_that_sleep(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pcdiff.cli.app import _options; assert 'numpy' not in sys.modules; _options();"
        "print(os.environ['OMP_WAIT_POLICY'])"
    )
    clean = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for given, expected in (({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=clean | given, capture_output=True, text=True, check=True, cwd=tmp_path
        )
        assert done.stdout.strip() == expected
