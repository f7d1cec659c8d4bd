"""Designs patient-specific cranial implants from a skull with a defect.

    import pcdiff

    skull, _ = pcdiff.read_skull("skull.nrrd")
    design = pcdiff.design(skull, pcdiff.load_method())

Coordinates are patient millimetres (LPS) unless a name says otherwise. Not a medical device.
Each public name is loaded at its first use, so `import pcdiff` alone loads neither numpy nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

DISTRIBUTION = "pcdiff-cranial"  # the name on the package index; `pcdiff` there is another project
NOTICE = "Not a medical device: for research only, not for diagnosis or treatment."

if TYPE_CHECKING:
    from pcdiff.checks.report import Report as Report
    from pcdiff.geometry.mesh import Mesh as Mesh
    from pcdiff.geometry.points import PointCloud as PointCloud
    from pcdiff.geometry.volume import Volume as Volume
    from pcdiff.imaging.input_check import read_skull as read_skull
    from pcdiff.methods.base import Candidate as Candidate
    from pcdiff.methods.base import Method as Method
    from pcdiff.methods.base import Proposal as Proposal
    from pcdiff.methods.registry import load_method as load_method
    from pcdiff.pipeline.check import check as check
    from pcdiff.pipeline.flow import Design as Design
    from pcdiff.pipeline.flow import design as design

_MODULES = {
    "Candidate": "pcdiff.methods.base",
    "Design": "pcdiff.pipeline.flow",
    "Mesh": "pcdiff.geometry.mesh",
    "Method": "pcdiff.methods.base",
    "PointCloud": "pcdiff.geometry.points",
    "Proposal": "pcdiff.methods.base",
    "Report": "pcdiff.checks.report",
    "Volume": "pcdiff.geometry.volume",
    "check": "pcdiff.pipeline.check",
    "design": "pcdiff.pipeline.flow",
    "load_method": "pcdiff.methods.registry",
    "read_skull": "pcdiff.imaging.input_check",
}

__all__ = [
    "DISTRIBUTION",
    "NOTICE",
    "Candidate",
    "Design",
    "Mesh",
    "Method",
    "PointCloud",
    "Proposal",
    "Report",
    "Volume",
    "__version__",
    "check",
    "design",
    "load_method",
    "read_skull",
]


def install_hint(extra: str = "") -> str:
    """The command that installs this package with one of its optional extras, from the index and from a clone."""
    if not extra:
        return f"pip install {DISTRIBUTION} (in a clone: pip install .)"
    return f"pip install '{DISTRIBUTION}[{extra}]' (in a clone: pip install '.[{extra}]')"


def __getattr__(name: str) -> object:
    """Loads a public name at its first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'pcdiff' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
