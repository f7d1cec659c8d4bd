"""What decides the result of a design, besides the scan and the version of this package."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcdiff import __version__
from pcdiff.checks.criteria import Criteria
from pcdiff.files import sha256
from pcdiff.geometry.grey import GreyHead
from pcdiff.geometry.mesh import check_space
from pcdiff.geometry.mesh_files import mesh_kinds
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.implants import read_region
from pcdiff.imaging.input_check import InputCheck, read_head
from pcdiff.methods.registry import weights_files
from pcdiff.pipeline.fit_options import USUAL, FitOptions

if TYPE_CHECKING:
    from pcdiff.methods.base import Method, PriorBasedMethod
    from pcdiff.prior.defects import DefectChoice, DefectNumbers
    from pcdiff.prior.orientation import Axes

DEFAULT_ENSEMBLE = 1
DEFAULT_CRITERIA = Criteria()


@dataclass(frozen=True)
class Settings:
    """Every option that decides the result.

    method: a name of `methods.registry`. ensemble: number of candidates. backend: of the reconstruction of oriented
    points. weights: a file, None for the shipped weights. threshold (HU), series, acquisition, label: of a CT, of DICOM
    and of a segmentation, see `input_check.read_head`. ignore_metal: of a CT. assume_orientation: go on with a head
    that is not upright in patient axes, or of unusual size. defects: those to close, see `prior.fit`. region:
    a mask, in place of `defects`. fitting: how the implant is made to fit. criteria: limits of the checks. mesh: kinds
    of mesh files, separated by commas, see `mesh_files`; an STL is always written. keep_points: write points.npz.
    fixation: number of marks for plates around each piece, see `fixation`. report: write report.html and preview.png.
    case_id: what the report calls the case; None names it after the scan's sha256.
    """

    method: str
    ensemble: int = DEFAULT_ENSEMBLE
    seed: int = 0
    device: str = "cpu"
    backend: str = "spectral"
    weights: Path | None = None
    threshold: int | None = None
    series: str | None = None
    label: str | None = None
    acquisition: int | None = None
    ignore_metal: bool = False
    assume_orientation: bool = False
    defects: DefectNumbers = "clear"
    region: Path | None = None
    fitting: FitOptions = USUAL
    criteria: Criteria = DEFAULT_CRITERIA
    mesh: str = "stl"
    mesh_space: str = "lps"
    keep_points: bool = False
    fixation: int = 0
    report: bool = True
    case_id: str | None = None

    def read_head(self, source: Path, with_grey: bool = False) -> tuple[Volume, InputCheck, GreyHead | None]:
        """The skull of a scan as the options say, see `input_check.read_head`."""
        return read_head(
            source,
            self.threshold,
            self.series,
            self.label,
            self.acquisition,
            ignore_metal=self.ignore_metal,
            with_grey=with_grey,
        )

    def closing(self, skull: Volume) -> DefectChoice:
        """What is to be closed of a skull, see `prior.fit`. Raises InputError for a region on another grid."""
        return closing(self.defects, self.region, skull)

    def axes_of(self, check: InputCheck) -> Axes:
        """What is known of the patient axes of a scan, see `prior.fit`."""
        return "assumed" if self.assume_orientation else "stated" if check.axes_stated else "unstated"

    def load(self) -> Method | PriorBasedMethod:
        """Checks the options and loads the method; one load serves many cases.

        Raises InputError for an unknown method, backend, mesh file or space, and for weights of another kind.
        """
        from pcdiff.methods.registry import load_method
        from pcdiff.reconstruct import backend_named

        backend_named(self.backend)
        mesh_kinds(self.mesh)
        check_space(self.mesh_space)
        return load_method(self.method, self.weights)

    def record(self) -> dict[str, Any]:
        """For `run.json`: version, settings, and the sha256 of each weights file."""
        settings = asdict(self)
        del settings["weights"]
        settings["region"] = None if self.region is None else sha256(self.region)
        if not isinstance(self.defects, str):
            settings["defects"] = list(self.defects)
        settings |= {"criteria": self.criteria.model_dump()}
        weights = {path.name: sha256(path) for path in weights_files(self.method, self.weights)}
        return {"pcdiff": __version__, "settings": settings, "weights": weights}


def closing(defects: DefectNumbers, region: Path | None, skull: Volume) -> DefectChoice:
    """What is to be closed of a skull, see `prior.fit`. Raises InputError for a region's file on another grid."""
    return defects if region is None else read_region(region, skull)
