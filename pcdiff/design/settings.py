"""What decides the result of a design, beside the scan and this package's version."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pcdiff import __version__
from pcdiff.checks.criteria import Criteria
from pcdiff.design.fitting import AS_DESIGNED, FitOptions
from pcdiff.files import sha256
from pcdiff.geometry.mesh import in_space
from pcdiff.geometry.mesh_files import mesh_kinds
from pcdiff.methods.registry import weights_files

if TYPE_CHECKING:
    from pcdiff.methods.base import Method, PriorBasedMethod

DEFAULT_ENSEMBLE = 1
USUAL = Criteria()


@dataclass(frozen=True)
class Settings:
    """All that decides the result, beside the scan and this package's version. weights: None for those shipped.

    threshold, series: of a CT and of a DICOM folder, see `input_check.read_skull`.
    fitting: how the implant is made to fit. criteria: what its checks are held against.
    mesh: kinds of mesh files with commas, see `mesh_files`; an STL is always among them. keep_points: points.npz too.
    report: report.html and preview.png too.
    """

    method: str
    ensemble: int = DEFAULT_ENSEMBLE
    seed: int = 0
    device: str = "cpu"
    backend: str = "spectral"
    weights: Path | None = None
    threshold: int | None = None
    series: str | None = None
    fitting: FitOptions = AS_DESIGNED
    criteria: Criteria = USUAL
    mesh: str = "stl"
    mesh_space: str = "lps"
    keep_points: bool = False
    report: bool = True

    def load(self) -> Method | PriorBasedMethod:
        """The method with its weights; once for many cases.

        Raises InputError for an unknown method, backend, mesh file or space, or other files.
        """
        from pcdiff.methods.registry import load_method
        from pcdiff.reconstruct import backend_named

        backend_named(self.backend)
        mesh_kinds(self.mesh)
        in_space(np.empty((0, 3)), self.mesh_space)
        return load_method(self.method, self.weights)

    def record(self) -> dict[str, Any]:
        """For `run.json`: version, settings, and the sha256 of each weights file."""
        settings = asdict(self)
        del settings["weights"]
        settings["criteria"] = self.criteria.model_dump()
        weights = {path.name: sha256(path) for path in weights_files(self.method, self.weights)}
        return {"pcdiff": __version__, "settings": settings, "weights": weights}
