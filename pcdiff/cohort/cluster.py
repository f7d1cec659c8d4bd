"""Dask clusters: processes on this machine, jobs of Slurm, or the workers of a scheduler that runs already."""

from __future__ import annotations

import importlib.util
import logging
import os
import shlex
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pcdiff import install_hint
from pcdiff.environment import THREADS
from pcdiff.errors import InputError, first_line

if TYPE_CHECKING:
    from distributed import Client, LocalCluster
    from distributed import Worker as DaskWorker

MB = "MB"  # the resource of a worker and of a case: memory, 10^6 bytes
GPU = "GPU"  # the resource of a worker that may use a GPU, and of a case on one: cases on it at the same time
VISIBLE = "CUDA_VISIBLE_DEVICES"
CONNECT_S = 10
PATIENCE = "10 minutes"  # with a worker that starts on a busy machine
CLOSE_S = 5
HEAPS = "MALLOC_ARENA_MAX"  # of glibc, read when a worker starts: a heap for each of its threads wastes memory
OURS = {
    "distributed.scheduler.allowed-failures": 0,  # `dispatch` tries again itself
    "distributed.deploy.lost-worker-timeout": PATIENCE,  # else a dead worker is given up before it is back
    "distributed.scheduler.worker-ttl": None,
    "distributed.comm.timeouts.connect": PATIENCE,
    f"distributed.nanny.pre-spawn-environ.{HEAPS}": 1,
    "distributed.worker.profile.enabled": False,  # it keeps what each thread did in each second of an hour
    "logging.distributed": "critical",
}


def check_installed(slurm: bool = False) -> None:
    """Raises InputError without Dask; with `slurm` also without dask-jobqueue or Slurm."""
    if importlib.util.find_spec("distributed") is None or importlib.util.find_spec("cryptography") is None:
        raise InputError(f"pcdiff cohort needs Dask, which is missing; run {install_hint('cohort')}")
    if slurm and importlib.util.find_spec("dask_jobqueue") is None:
        raise InputError(f"--slurm: expected dask-jobqueue, it is not installed; run {install_hint('cohort')}")
    if slurm and shutil.which("sbatch") is None:
        raise InputError("--slurm: expected the command sbatch, found none; run this on a machine that can submit jobs")


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes. Loads torch."""
    import torch

    named = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    return (named or [str(number) for number in range(torch.cuda.device_count())])[: torch.cuda.device_count()]


class Worker(NamedTuple):
    """A worker of Dask. cases: at the same time. mb: its memory, 10^6 bytes."""

    address: str
    cases: int
    mb: int


@contextmanager
def local_cluster(workers: int, threads: int, mb_each: int, gpus: Sequence[str] = ()) -> Iterator[Client]:
    """Worker processes on this machine, each for one case at a time on so many threads, with so much memory.

    gpus: the GPUs that they share; each worker sees one of them, as `cuda`. Where the environment says how many
    threads, as OMP_NUM_THREADS does, that holds.

    They talk over the loopback interface, encrypted with a key of their own, so other users of the machine cannot give
    them work. If the block raises, they are killed: nothing goes on without the caller.
    """
    import dask
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.CRITICAL + 1)  # also while it closes, when Dask resets its own
    with dask.config.set(OURS):
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            security=True,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL + 1,
            memory_limit=0,  # a case's estimate is what limits it
            resources=resources(mb_each, bool(gpus)),
            env={name: os.environ.get(name, str(threads)) for name in THREADS},
        )
        client = None
        try:
            client = Client(cluster)
            if gpus:  # also for a worker that starts anew
                client.register_worker_callbacks(partial(_see_one, gpus))
            yield client
        except BaseException:
            _kill_workers(cluster)
            raise
        finally:
            for each in filter(None, (client, cluster)):
                with suppress(TimeoutError):
                    each.close(timeout=CLOSE_S)


@contextmanager
def slurm_cluster(options: str, workers: int, mb_each: int, gpu: bool, shared: Path) -> Iterator[Client]:
    """Jobs of Slurm, each a worker for one case at a time on one core, with so much memory.

    options: of sbatch. gpu: whether each has a GPU, which the options have to ask for. shared: a folder that every
    machine sees; while the block runs it holds the key with which the workers talk, readable by this user alone.
    """
    import dask
    from dask_jobqueue import SLURMCluster
    from distributed import Client

    ours = (
        f"export DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT='{PATIENCE}'",
        "export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False",
    )
    with dask.config.set(OURS):
        cluster = SLURMCluster(
            cores=1,
            processes=1,
            memory=f"{mb_each}MB",
            job_directives_skip=["#SBATCH -t"],  # dask-jobqueue's own default of half an hour
            job_extra_directives=shlex.split(options),
            job_script_prologue=[*ours, *(f"export {name}=1" for name in (*THREADS, HEAPS))],
            worker_extra_args=["--resources", f"'{as_words(resources(mb_each, gpu))}'", "--memory-limit", "0"],
            security=True,
            shared_temp_directory=str(shared),
            silence_logs=logging.CRITICAL + 1,
        )
        with cluster, Client(cluster, set_as_default=False) as client:
            cluster.scale(jobs=workers)
            yield client


@contextmanager
def running_cluster(scheduler: str) -> Iterator[Client]:
    """The cluster of a scheduler that runs already. scheduler: its address, or the file that it has written.

    Raises InputError for a scheduler that does not answer.
    """
    from distributed import Client

    where = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
    try:
        client = Client(**where, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            f"--scheduler {scheduler}: expected the address of a Dask scheduler, or its scheduler file, got no answer "
            f"({first_line(error)}); start one with: dask scheduler"
        ) from error
    try:
        yield client
    finally:
        with suppress(TimeoutError):
            client.close(timeout=CLOSE_S)


def workers_of(client: Client, gpu: bool) -> list[Worker]:
    """The workers that are there; with `gpu` those that have one. Raises InputError if none states what it has."""
    found = client.sync(client.scheduler.identity, n_workers=-1)["workers"]  # what `scheduler_info` keeps may be cut
    wanted = resources(4000, gpu)
    workers = []
    for address, each in found.items():
        has = each["resources"]
        if has.keys() >= wanted.keys():
            cases = min(each["nthreads"], int(has[GPU])) if gpu else each["nthreads"]
            workers.append(Worker(address, cases, int(has[MB])))
    if found and not workers:
        raise InputError(
            f"the Dask workers do not state their {'memory and GPU' if gpu else 'memory'}; start each with --resources "
            f"'{as_words(wanted)}' for 4000 MB{' and one case at a time on its GPU' if gpu else ''}"
        )
    return workers


def resources(mb: int, gpu: bool) -> dict[str, int]:
    """What a worker has and a case takes, by Dask's names."""
    return {MB: mb} | ({GPU: 1} if gpu else {})


def as_words(amounts: dict[str, int]) -> str:
    """Resources as the command `dask worker` takes them."""
    return " ".join(f"{name}={amount}" for name, amount in amounts.items())


def dashboard_of(client: Client) -> str | None:
    """The address of the dashboard, where there is one: Dask needs Bokeh for it."""
    return client.dashboard_link if importlib.util.find_spec("bokeh") else None


def _see_one(gpus: Sequence[str], dask_worker: DaskWorker) -> None:
    """Leaves this worker one of the GPUs, before a case loads torch."""
    os.environ[VISIBLE] = gpus[dask_worker.name % len(gpus)]


def _kill_workers(cluster: LocalCluster) -> None:
    """Ends the workers at once, whatever they do."""
    for nanny in cluster.workers.values():
        nanny.auto_restart = False
        if nanny.process is not None and nanny.process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(nanny.process.pid, signal.SIGKILL)
