"""A cohort on worker processes: rows for all, deaths and signals in between, and the same files as `pcdiff design`."""

from __future__ import annotations

import csv
import gc
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cohort_rows import SETTINGS, job, row_of

from pcdiff.cohort.cluster import local_cluster, running_cluster, visible_gpus, workers_of
from pcdiff.cohort.dispatch import Dispatch
from pcdiff.cohort.rows import Row
from pcdiff.cohort.runner import Cohort
from pcdiff.cohort.work import Job, digest_of
from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.errors import InputError
from pcdiff.files import sha256
from pcdiff.imaging.volumes import write_volume
from pcdiff.prior.model import ShapePrior

distributed = pytest.importorskip("distributed", reason="needs the extra cohort")
pytest.importorskip("cryptography", reason="needs the extra cohort")
psutil = pytest.importorskip("psutil")

Run = Callable[..., tuple[int, str, str]]
OPTIONS = ("--method", "prior", "--no-report")
FILES = ("implant.nrrd", "implant.stl", "checks.json", "surface.npz", "defective_skull.nrrd")


@pytest.fixture(scope="session")
def heads(tmp_path_factory: pytest.TempPathFactory, prior: ShapePrior) -> Path:
    """Two coarse heads with a defect, a damaged file between them, and a whole skull."""
    folder = tmp_path_factory.mktemp("heads")
    healthy = prior.draw(np.random.default_rng(3), spacing=2.5)
    for number, kind in enumerate(("random_1", "bilateral")):
        skull, _ = simulate_craniotomy(healthy, kind, np.random.default_rng(number))
        write_volume(skull, folder / f"{number}_head.nrrd")
    (folder / "0_damaged.nrrd").write_bytes((folder / "0_head.nrrd").read_bytes()[:2000])
    (folder / "0_text.nii.gz").write_text("patient\n")
    return folder


# Workers -------------------------------------------------------------------------------------------------------------


def pretend(job: Job) -> Row:
    """A case whose name says what happens to its worker."""
    mark = job.folder.with_suffix(".tried")
    tried = mark.read_text() if mark.exists() else ""
    mark.write_text(f"{tried}{os.getpid()} ")
    if "kill" in job.folder.name and ("always" in job.folder.name or not tried):
        os.kill(os.getpid(), signal.SIGKILL)
    began = time.time()
    time.sleep(100 if "hang" in job.folder.name else 0.3)
    return row_of(job, warnings=[f"{began} {time.time()}"])


@pytest.fixture(scope="module")
def client() -> Iterator[object]:
    """Two workers of 1000 MB."""
    with local_cluster(2, 1, 1000) as client:
        yield client


def test_dead_workers_stop_nobody(client: distributed.Client, tmp_path: Path) -> None:
    names = ["a", "kill_always", "b", "kill_once", "c", "d"]
    jobs = [job(tmp_path / name) for name in names]
    left = tmp_path / f".kill_always.{'0' * 32}"
    left.mkdir()
    rows = {row.case: row for row in Dispatch(client, jobs, pretend).rows()}
    assert rows.keys() == set(names)
    assert [name for name in names if rows[name].failed] == ["kill_always"]
    reason = rows["kill_always"].reason
    assert reason.startswith("kill_always.nrrd: its worker died 2 times in the middle of it")
    assert rows["kill_always"].exit_code == 1
    tries = {name: (tmp_path / f"{name}.tried").read_text().split() for name in names}
    assert {name: len(set(pids)) for name, pids in tries.items()} == dict.fromkeys(names, 1) | {
        "kill_always": 2,
        "kill_once": 2,
    }
    assert not left.exists()


def seen(job: Job) -> Row:
    return row_of(job, warnings=[os.environ["CUDA_VISIBLE_DEVICES"]])


def test_each_worker_sees_one_gpu_and_gets_the_cases_for_gpus(client: distributed.Client, tmp_path: Path) -> None:
    on_gpu = replace(SETTINGS, device="cuda")
    jobs = [replace(job(tmp_path / name), settings=on_gpu) for name in "abcdef"]
    with pytest.raises(InputError, match=r"do not state their memory and GPU; .* 'MB=4000 GPU=1' for 4000 MB and one"):
        list(Dispatch(client, jobs, seen).rows())
    with local_cluster(3, 1, 100, ["4", "7"]) as with_gpus:
        workers = workers_of(with_gpus, gpu=True)
        assert [(worker.cases, worker.mb) for worker in workers] == [(1, 100)] * 3
        found = with_gpus.run(os.getenv, "CUDA_VISIBLE_DEVICES")
        assert sorted(found.values()) == ["4", "4", "7"]
        rows = list(Dispatch(with_gpus, jobs, seen).rows())
    assert {row.case for row in rows} == set("abcdef")
    assert {text for row in rows for text in row.warnings} == {"4", "7"}


def test_the_gpus_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5e0f,GPU-77aa")
    assert visible_gpus() == ["GPU-5e0f", "GPU-77aa"]


def test_a_case_that_hangs_is_a_row_and_the_others_go_on(client: distributed.Client, tmp_path: Path) -> None:
    names = ["hang_1", "hang_2", "a", "b", "c"]
    jobs = [replace(job(tmp_path / name), timeout_s=2.0) for name in names]
    (tmp_path / f".hang_1.{'0' * 32}").mkdir()
    rows = {row.case: row for row in Dispatch(client, jobs, pretend).rows()}
    assert [name for name in names if rows[name].failed] == ["hang_1", "hang_2"]
    assert rows["hang_1"].reason == "hang_1.nrrd: no implant after 2 s; allow more by --timeout, with --retry"
    assert rows["hang_1"].exit_code == 1
    assert all(len((tmp_path / f"{name}.tried").read_text().split()) == 1 for name in names)
    assert not any(tmp_path.glob(".*"))


def test_a_client_that_stood_still_takes_no_worker_for_dead(
    client: distributed.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = [0.0]

    class Standing(Dispatch):
        def _give(self) -> None:
            super()._give()
            passed[0] += 600  # as in a machine that sleeps

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0])
    monkeypatch.setattr("pcdiff.cohort.dispatch.time", clock)
    jobs = [replace(job(tmp_path / name), timeout_s=1e6) for name in "abcd"]
    assert {row.case: row.state for row in Standing(client, jobs, pretend).rows()} == dict.fromkeys("abcd", "designed")
    assert all(len((tmp_path / f"{name}.tried").read_text().split()) == 1 for name in "abcd")


def test_a_result_that_is_slow_to_come_is_no_dead_worker(
    client: distributed.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask takes a result back that it could not fetch, and gives it again."""
    result, done = distributed.Future.result, distributed.Future.done
    asked = []

    def slow(future: distributed.Future, timeout: float | None = None) -> object:
        if future.key.startswith("case-") and future.key not in asked:
            asked.append(future.key)
            raise TimeoutError
        return result(future, timeout)

    monkeypatch.setattr(distributed.Future, "result", slow)
    monkeypatch.setattr(distributed.Future, "done", lambda future: future.key not in asked[-1:] and done(future))
    jobs = [job(tmp_path / name) for name in "abcd"]
    assert {row.case: row.state for row in Dispatch(client, jobs, pretend).rows()} == dict.fromkeys("abcd", "designed")
    assert len(asked) == 4
    assert all(len((tmp_path / f"{name}.tried").read_text().split()) == 1 for name in "abcd")


def test_nothing_is_started_that_does_not_fit(client: distributed.Client, tmp_path: Path) -> None:
    jobs = [job(tmp_path / "large", 1001), *(job(tmp_path / f"{number}", 600) for number in range(4))]
    large, *others = sorted(Dispatch(client, jobs, pretend).rows(), key=lambda row: row.state, reverse=True)
    assert large.failed
    assert "may need 1001 MB of memory, 1000 MB is the most that a worker has" in large.reason
    assert large.exit_code == 2
    spans = [tuple(map(float, row.warnings[0].split())) for row in others]
    assert max(sum(began <= start < ended for began, ended in spans) for start, _ in spans) <= 2


def test_a_scheduler_that_runs(tmp_path: Path, run: Run, heads: Path) -> None:
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50, resources={"MB": 2000}
    )
    with cluster:
        address = cluster.scheduler_address
        rows = Cohort(tmp_path / "out", SETTINGS, scheduler=address).run({heads / "0_head.nrrd": "anna"}, pretend)
        assert [(row.case, row.state) for row in rows] == [("anna", "designed")]
    code, _, said = run("cohort", heads, "-o", tmp_path / "out", *OPTIONS, "--scheduler", "tcp://127.0.0.1:9")
    assert code == 2
    assert "expected the address of a Dask scheduler" in said
    with pytest.raises(InputError, match="got no answer"), running_cluster("nonsense"):
        pass


SBATCH = """#!/bin/sh
cp "$1" {folder}/script.$$
setsid sh {folder}/script.$$ >{folder}/said.$$ 2>&1 </dev/null &
echo $! >>{folder}/jobs
echo "Submitted batch job $!"
"""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # dask-jobqueue closes no file
def test_workers_that_are_jobs_of_slurm(tmp_path: Path, run: Run, heads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stub of Slurm runs the jobs on this machine."""
    pytest.importorskip("dask_jobqueue", reason="needs the extra cohort")
    stub, out = tmp_path / "stub", tmp_path / "out"
    stub.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", '#!/bin/sh\nkill -- -"$1"\necho "$1" >>{folder}/cancelled\n')):
        (stub / name).write_text(text.format(folder=stub))
        (stub / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # the jobs know `pretend`
    scans = {path: None for path in heads.glob("?_head.nrrd")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # dask-jobqueue does not close the files of its keys
        rows = Cohort(out, SETTINGS, 2, slurm="--partition='my cpus' --time=1:00:00").run(scans, pretend)
        gc.collect()
    assert {row.case: row.state for row in rows} == {"0_head": "designed", "1_head": "designed"}
    jobs = (stub / "jobs").read_text().split()
    assert len(jobs) == 2
    assert sorted((stub / "cancelled").read_text().split()) == sorted(jobs)
    for script in stub.glob("script.*"):
        lines = script.read_text().splitlines()
        assert [line for line in lines if "my cpus" in line or "time=" in line] == [
            *("#SBATCH --partition=my cpus", "#SBATCH --time=1:00:00"),
        ]
        assert not any(line.startswith("#SBATCH -t") for line in lines)
        assert any(re.search(r"--resources 'MB=\d+' ", line) for line in lines)
        assert "export MALLOC_ARENA_MAX=1" in lines
        assert "export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False" in lines
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    code, _, said = run("cohort", heads, "-o", tmp_path / "other", *OPTIONS, "--slurm", "-p cpu", "--workers", 2)
    assert code == 2
    assert "expected the command sbatch, found none" in said
    assert not (tmp_path / "other").exists()
    code, _, said = run("cohort", heads, "-o", tmp_path / "other", *OPTIONS, "--slurm", "-p cpu")
    assert code == 2
    assert "expected --workers" in said


# The whole -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A cohort of all heads, one of whose workers is killed in the middle of a design; and what it said."""
    out = tmp_path_factory.mktemp("cohort") / "out"
    command = [sys.executable, "-m", "pcdiff", "cohort", str(heads), "-o", str(out), *OPTIONS, "--workers", "2"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=one_thread)
    try:
        wait_for(lambda: any(out.glob(".1_head.*")))
        (part,) = out.glob(".1_head.*")
        (worker,) = (child for child in psutil.Process(process.pid).children() if str(part) in held(child.pid))
        worker.kill()
        printed, said = process.communicate(timeout=200)
    finally:
        process.kill()
    return out, subprocess.CompletedProcess(command, process.returncode, printed, said)


def held(pid: int) -> list[str]:
    """What a process has open."""
    return [os.path.realpath(link) for link in Path(f"/proc/{pid}/fd").iterdir()]


def test_hostile_scans_in_between(done: tuple[Path, subprocess.CompletedProcess[str]], heads: Path) -> None:
    out, said = done
    assert said.returncode == 2
    assert said.stdout.startswith("2 of 4 cases have an implant")
    assert "2 cases failed" in said.stdout
    assert "Traceback" not in said.stderr
    assert "about" in said.stderr
    rows = {row["case"]: row for row in map(json.loads, (out / "cohort.jsonl").read_text().splitlines())}
    assert {name: row["state"] for name, row in rows.items()} == {
        "0_head": "designed",
        "1_head": "designed",
        "0_damaged": "failed",
        "0_text": "failed",
    }
    assert all(row["sha256"] == sha256(Path(row["scan"])) for row in rows.values())
    assert all(name in rows[name]["reason"] for name in ("0_damaged", "0_text"))
    assert rows["0_head"]["picture"].startswith("data:image/webp;base64,")
    assert 0 < rows["0_head"]["peak_memory_mb"] < rows["0_head"]["expected_mb"]
    with (out / "cohort.csv").open() as file:
        table = {line["case"]: line for line in csv.DictReader(file)}
    assert table.keys() == rows.keys()
    assert float(table["1_head"]["implant_ml"]) == rows["1_head"]["implant_ml"]
    assert sorted(path.name for path in out.iterdir()) == [
        *("0_head", "1_head", "cohort.csv", "cohort.html", "cohort.jsonl"),
    ]


def test_the_files_are_those_of_design(
    done: tuple[Path, subprocess.CompletedProcess[str]], heads: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "pcdiff", "design", str(heads / "1_head.nrrd"), "-o", str(tmp_path), *OPTIONS]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    for name in FILES:
        assert (tmp_path / "1_head" / name).read_bytes() == (done[0] / "1_head" / name).read_bytes(), name
    ours, theirs = (json.loads((folder / "1_head/run.json").read_text()) for folder in (done[0], tmp_path))
    for record in (ours, theirs):
        for key in ("seconds", "peak_memory_mb", "date"):
            del record[key]
    assert ours == theirs


def test_a_second_time_does_nothing(
    done: tuple[Path, subprocess.CompletedProcess[str]], heads: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = done[0]
    before = {path: path.stat().st_mtime_ns for path in out.glob("*_head/*")}
    started = []

    def no_cluster(*arguments: object) -> Iterator[object]:
        started.append(arguments)
        raise InputError("a cluster is started")

    monkeypatch.setattr("pcdiff.cohort.runner.local_cluster", no_cluster)
    cohort = ("cohort", f"{heads}/*", "-o", out, *OPTIONS)
    code, printed, said = run(*cohort, "--json")
    assert code == 2
    assert json.loads(printed) | {"out": ""} == {
        **{"cases": 4, "designed": 2, "stood": 2, "failed": 2, "out": ""},
        "fail_a_check": json.loads(printed)["fail_a_check"],
    }
    assert said.count("(failed before; --retry tries again)") == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not started
    for again in (["--retry"], ["--overwrite"], ["--seed", "1"]):
        code, _, said = run(*cohort, *again)
        assert (code, len(started)) == (2, 1), again
        assert "a cluster is started" in said
        started.clear()
    assert len((out / "cohort.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(number: signal.Signals, heads: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pcdiff", "cohort", str(heads / "*_head*"), "-o", str(tmp_path), *OPTIONS]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # jobs in the background of a shell are deaf to it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heard)
    try:
        wait_for(lambda: any(tmp_path.glob(".*_head.*")))
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) > 1
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)  # Ctrl-C reaches the whole group
        said = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        *("cohort.csv", "cohort.html", "cohort.jsonl"),
    ]
    assert not [*tmp_path.glob(".*")]


def wait_for(condition: Callable[[], bool], seconds: float = 50) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_without_dask_it_says_how_to_get_it(
    run: Run, heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, said = run("cohort", heads, "-o", tmp_path / "out", *OPTIONS)
    assert code == 2
    assert said.startswith("pcdiff: pcdiff cohort needs Dask, which is missing; run pip install")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_digest_of_what_cannot_be_read(heads: Path) -> None:
    assert digest_of(heads / "0_text.nii.gz") == sha256(heads / "0_text.nii.gz")
    assert digest_of(heads / "gone.nrrd") is None


# The simulation ------------------------------------------------------------------------------------------------------


def test_the_simulation_bends_where_its_parts_are_full() -> None:
    """One worker waits for nobody; many are as fast as the disk, or as the client, allows."""
    tool = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "simulate_cohort.py"))
    simulate, costs = tool["simulate"], tool["Costs"]
    alone = simulate(1, 10, costs([3.0], 0.5, 0.25, 0.25, 1.0))
    assert alone.hours * 3600 == pytest.approx(1 + 10 * 4)
    assert alone.disk == pytest.approx(6 / 41)
    for client_s, disk_s in ((0.1, 0.5), (0.5, 0.1)):
        full = simulate(100, 1000, costs([3.0, 5.0], client_s, disk_s / 2, disk_s / 2, 0.0))
        assert full.cases_per_hour == pytest.approx(3600 / 0.5, rel=0.02)
        assert max(full.client, full.disk) > 0.98
    free = simulate(100, 1000, costs([4.0], 1e-6, 0.0, 0.0, 0.0))
    assert free.cases_per_hour == pytest.approx(100 * 3600 / 4, rel=0.001)
