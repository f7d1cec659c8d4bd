"""How much memory a design may need, from the header of its scan: so that no more cases run than fit."""

from __future__ import annotations

import math
from pathlib import Path

from pcdiff.errors import InputError
from pcdiff.imaging.formats.dicom_files import dicom_files
from pcdiff.imaging.formats.dicom_header import read_slices
from pcdiff.imaging.scan import is_dicom_scan
from pcdiff.imaging.volumes import open_image
from pcdiff.pipeline.settings import Settings

# Measured with `pcdiff cohort`, see docs/scale.md: above the peak of every case there.
BASE_MB = 750  # packages, weights, shape model
BYTES_PER_VOXEL = 10
CANDIDATE_MB = 300  # for each candidate beyond the first


def expected_mb(scan: Path, settings: Settings) -> int:
    """10^6 bytes that the design of a scan may need at its peak; of one that cannot be read those of the packages."""
    try:
        count = voxels(scan)
    except (InputError, OSError):
        count = 0  # its own case says why
    return math.ceil(BASE_MB + count * BYTES_PER_VOXEL / 1e6 + CANDIDATE_MB * (settings.ensemble - 1))


def voxels(scan: Path) -> int:
    """Voxels of a scan by its header. Of a DICOM folder as many slices count as it has files, all like the first."""
    if is_dicom_scan(scan):
        files = dicom_files(scan)
        slices = read_slices(files[0])
        return len(files) * sum(math.prod(each.pixels.size) for each in slices)
    with open_image(scan) as image:
        return math.prod(image.shape) * image.layers
