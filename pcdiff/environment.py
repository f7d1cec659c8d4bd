"""The machine that a process runs on: its packages, its memory, its threads."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Executor

Item = TypeVar("Item")
Result = TypeVar("Result")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/nvmap")  # of NVIDIA, AMD, WSL, Jetson

# Of glibc's mallopt(3): M_ARENA_MAX, M_TRIM_THRESHOLD, M_MMAP_THRESHOLD with its largest value.
MALLOC_OPTIONS = ((-8, 1), (-1, 2**30), (-3, 2**25))

# Control groups of version 2 and 1: their folder, and the files of the limit and of what is used.
GROUP_FILES = {
    "": ("/sys/fs/cgroup", "memory.max", "memory.current"),
    "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
}


def peak_memory_mb() -> float:
    """Peak resident set of this process, 10^6 bytes; on Windows its peak working set."""
    if sys.platform == "win32":
        return _peak_working_set() / 1e6
    import resource

    if sys.platform == "linux":  # ru_maxrss starts at the resident set of the parent process
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


class _MemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of Windows' psapi.h."""

    _fields_ = (
        ("cb", ctypes.c_uint32),
        ("PageFaultCount", ctypes.c_uint32),
        ("PeakWorkingSetSize", ctypes.c_size_t),
        ("others", ctypes.c_size_t * 7),
    )


def _peak_working_set() -> int:
    """Bytes, of this process; 0 where Windows does not tell."""
    kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    kernel.K32GetProcessMemoryInfo.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
    counters = _MemoryCounters(cb=ctypes.sizeof(_MemoryCounters))
    kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb)
    return int(counters.PeakWorkingSetSize)


def forget_peak_memory() -> None:
    """Lets `peak_memory_mb` begin anew, where the system can do that: Linux (see proc(5), clear_refs)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory_at_hand() -> int:
    """Bytes that this process may still take: what the machine has free, or less if a limit is set for the process."""
    return min([_free_memory(), *_group_limits(), *_address_limit()])


def _free_memory() -> int:
    """Memory free on the machine; where it does not tell, all that it has."""
    try:
        found = re.search(r"^MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    names = getattr(os, "sysconf_names", {})
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in names else sys.maxsize


def _group_limits() -> list[int]:
    """What is left of the limits of the control groups that the process is in: those of a container or a batch job."""
    left = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for _, kind, group in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if kind not in GROUP_FILES:
            continue
        root, limit_file, used_file = GROUP_FILES[kind]
        for folder in (Path(root + group), *Path(root + group).parents):
            try:
                limit, used = (int((folder / name).read_text()) for name in (limit_file, used_file))
                cache = re.search(
                    r"^(?:total_)?inactive_file (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE
                )
            except (OSError, ValueError):  # no such file, or no limit: "max"
                continue
            left.append(max(0, limit - used + int(cache[1] if cache else 0)))
    return left


def _address_limit() -> list[int]:
    """What is left of the limit of the address space, as `ulimit -v` sets it."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError):
        return []
    return [] if limit == resource.RLIM_INFINITY else [max(0, limit - used)]


def cpu_count() -> int | None:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def may_have_gpu() -> bool:
    """Whether a GPU may be there, without torch: on Linux a driver shows a file; elsewhere only torch can tell."""
    return sys.platform != "linux" or any(Path(name).exists() for name in GPU_FILES)


def gpu_names() -> list[str]:
    """Names of the NVIDIA GPUs that the driver lists, without torch; empty where its tool is missing or fails."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"^GPU \d+: (.*?) \(UUID", done.stdout, re.MULTILINE)


def machine() -> dict[str, Any]:
    """The platform and package versions that the bytes of a result may depend on, beside its settings."""
    packages = ("numpy", "scipy", "scikit-image", "torch")
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "cpu_count": cpu_count(),
    }


def commit() -> str | None:
    """The commit of the clone that this package runs from, with `-dirty` for changed files; None without a clone."""
    package = str(Path(__file__).parent)
    git = ("git", "-C", package)
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=True)
        described = [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(described, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or installed in a folder that git does not track
        return None


def let_waiting_threads_sleep() -> None:
    """OpenMP's threads that wait for work do not keep cores busy, unless the user has set it; read when it loads."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def keep_freed_memory() -> None:
    """Memory that is freed is used again: by default glibc returns large arrays to the system, and gets them anew.

    Each of their pages is then cleared by the system at its first use, which took a twentieth of a design. One heap for
    all threads, not one each, holds a tenth less. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in MALLOC_OPTIONS:
            mallopt(option, value)


def return_freed_memory() -> None:
    """Gives back to the system what lies free, once: what a large case has left would stay with the process for ever.

    Only with glibc; other C libraries are left as they are.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def collect_garbage_rarely() -> None:
    """Python looks for garbage, objects that refer to each other, after 100,000 new objects, and not when it ends.

    After 700, and several times at the end, it took a second of a design: what torch is made of was looked at each
    time. Arrays are hardly ever such garbage.
    """
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item], threads: int = 2) -> list[Result]:
    """What `work` makes of each item, on threads; for work that releases the interpreter's lock at least in part.

    After an error or a signal no other item is begun. threads: each holds the arrays of its item, up to half a gigabyte
    for an implant, and the workers of a cohort share the cores.
    """
    from concurrent.futures import ThreadPoolExecutor

    waiting = list(items)
    with ThreadPoolExecutor(max(1, min(len(waiting), threads))) as pool:
        return list(pool.map(work, waiting))


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Products and decompositions of matrices run on one thread in the block, or in the function that it decorates.

    OpenBLAS's threads wait for each other in a loop. Where other processes hold the cores, the twelve Cholesky
    decompositions of a design took 14 seconds on two threads; on one they take 0.2, so that little is to be gained.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


@contextmanager
def one_thread_per_child() -> Iterator[None]:
    """Processes started in the block run OpenMP and BLAS on one thread each; the libraries read this when they load.

    Many workers with as many threads as cores each would only get in each other's way.
    """
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def worker_pool(workers: int) -> Iterator[Executor]:
    """Processes that work side by side, each on one thread; at least one.

    An error or a signal waits for the jobs under way and starts no other one.
    """
    from concurrent.futures import ProcessPoolExecutor  # takes a while to load, which `pcdiff --help` does not need
    from multiprocessing import get_context

    spawn = get_context("spawn")
    with (
        one_thread_per_child(),
        ProcessPoolExecutor(max(workers, 1), mp_context=spawn, initializer=_begin_to_work) as pool,
    ):
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _begin_to_work() -> None:
    """What a worker does first; it ends with the process that started it: after SIGKILL it would wait for ever."""
    from multiprocessing import parent_process

    keep_freed_memory()

    def wait() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
