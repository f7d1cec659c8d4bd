"""What this installation can do: `pcdiff info` without a scan. Loads neither numpy nor torch."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from pcdiff import NOTICE, __version__
from pcdiff.cli.doctor import PURPOSES, requirements, version_of
from pcdiff.environment import cpu_count, gpu_names
from pcdiff.files import sha256, shipped_sha256
from pcdiff.methods.registry import DEFAULT, DEFAULT_OF_ENSEMBLE, METHODS, installed_methods, weights_files
from pcdiff.pipeline.stages import STAGES


def capabilities() -> dict[str, Any]:
    """Version, methods, stages of a design, extras, devices and weights, as `pcdiff info --json` prints them.

    `methods[NAME].ready` is False for a method that needs weights of your own, or whose weights or extra are missing.
    `weights[FILE].as_shipped` is None for a file that this package does not ship. GPUs are those that NVIDIA's driver
    lists; `pcdiff doctor` says whether torch can use them.
    """
    extras = _extras()
    methods: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    for name, entry in (METHODS | installed_methods()).items():
        files = [] if entry.required else weights_files(name)
        missing = [path.name for path in files if not path.is_file()]
        methods[name] = {
            "help": entry.help,
            "ready": not entry.required and not missing and entry.is_installed,
            "needs": entry.required or (f"weights that are missing: {', '.join(missing)}" if missing else None),
            "extra": entry.extra,
            "licence": entry.licence,
            "weights": [path.name for path in files],
        }
        weights |= {path.name: _weights(path) for path in files if path.is_file()}
    return {
        "pcdiff": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "notice": NOTICE,
        "default_method": DEFAULT,
        "default_method_of_ensemble": DEFAULT_OF_ENSEMBLE,
        "methods": methods,
        "stages": [asdict(stage) for stage in STAGES.values()],
        "extras": extras,
        "devices": {"cpu_cores": cpu_count(), "gpus": gpu_names()},
        "weights": weights,
    }


def capability_lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    devices = found["devices"]
    gpus = ", ".join(devices["gpus"]) or "no NVIDIA GPU"
    lines = [f"pcdiff {found['pcdiff']}, Python {found['python']}", f"devices: {devices['cpu_cores']} cores, {gpus}"]
    for name, method in found["methods"].items():
        default = " (default)" if name == found["default_method"] else ""
        lines.append(f"method {name}{default}: {'ready' if method['ready'] else 'not ready'}; {method['help']}")
    lines += [f"extra {name}: {'installed' if there else 'not installed'}" for name, there in found["extras"].items()]
    words = {True: "as shipped", False: "changed since it was shipped", None: "of another package"}
    lines += [f"weights {name}: {words[each['as_shipped']]}" for name, each in found["weights"].items()]
    return lines


def _extras() -> dict[str, bool]:
    """Extra -> whether all of its packages are installed."""
    try:
        required = requirements()
    except metadata.PackageNotFoundError:
        required = {}
    return {extra: extra in required and all(map(version_of, required[extra])) for extra in PURPOSES}


def _weights(path: Path) -> dict[str, Any]:
    digest, known = sha256(path), shipped_sha256(path)
    return {"sha256": digest, "as_shipped": None if known is None else digest == known}
