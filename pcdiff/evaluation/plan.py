"""The plan of an evaluation: which method runs on which case, and everything that its row depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pcdiff.data.cases import Case
from pcdiff.files import sha256
from pcdiff.geometry.mesh_reading import is_mesh
from pcdiff.imaging.scan import input_digest


@dataclass(frozen=True)
class Run:
    """One method on one case.

    command: with the placeholders {skull}, {out}, {method} and {seed}. implant: where the implant is kept.
    fingerprint: digest of the command, this package's code and weights, the method's own weights, and the case's
    files; a row with another fingerprint is not reused.
    """

    method: str
    case: Case
    seed: int
    command: tuple[str, ...]
    implant: Path
    fingerprint: str

    def filled(self, skull: Path, out: Path) -> list[str]:
        """The command with its placeholders filled in; other braces stay as they are."""
        values = {"skull": skull, "out": out, "method": self.method, "seed": self.seed}
        return [_fill(part, values) for part in self.command]


def plan_runs(
    methods: Iterable[str],
    cases: Sequence[Case],
    out: Path,
    seed: int,
    command: Sequence[str],
    weights: Mapping[str, Mapping[str, str]],
) -> list[Run]:
    """Each method on each case, in this order. weights: method -> name and sha256 of each file that it reads."""
    code = package_digest()
    inputs = [_case_digests(case) for case in cases]
    runs = []
    for method in dict.fromkeys(methods):
        own = sorted(weights[method].values())
        for case, files in zip(cases, inputs, strict=True):
            parts = json.dumps([*command, code, own, *files])
            fingerprint = hashlib.sha256(parts.encode()).hexdigest()[:16]
            runs.append(Run(method, case, seed, tuple(command), implant_path(out, method, case.name), fingerprint))
    return runs


def package_digest() -> str:
    """Digest of this package's code and weights: a row must not outlive the code that it was measured with."""
    digest = hashlib.sha256()
    with resources.as_file(resources.files("pcdiff")) as package:
        for path in sorted(path for kind in ("*.py", "*.safetensors") for path in package.rglob(kind)):
            digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def implant_path(out: Path, method: str, case: str) -> Path:
    """Where an evaluation keeps the implant of a case."""
    return out / "implants" / method / f"{case}.nrrd"


def _case_digests(case: Case) -> list[str | None]:
    digests = [None if path is None or not path.exists() else _digest(path) for path in case.files]
    return [*digests, case.mesh_space, case.label]


def _digest(path: Path) -> str:
    return sha256(path) if is_mesh(path) else input_digest(path)


def _fill(part: str, values: Mapping[str, object]) -> str:
    for name, value in values.items():
        part = part.replace(f"{{{name}}}", str(value))
    return part
