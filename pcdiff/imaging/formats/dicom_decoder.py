"""Decodes DICOM files in a process of its own: `python dicom_decoder.py FOLDER`.

The pixels of each file are written beside it, as little-endian int32. The process has limits for its memory, its time
and the size of a file, so that pixels that were made to exhaust them end this process and nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path

DECODED = ".raw"  # suffix of what is written
MEMORY = 2**31  # bytes; the libraries take 0.4 GB
SECONDS = 100  # of computing
FILE = 2**25  # bytes


def main(folder: Path) -> None:
    """Decodes the files in a folder. Raises RuntimeError for one that cannot be decoded."""
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        limits = {"AS": MEMORY, "CPU": SECONDS, "FSIZE": FILE, "CORE": 0}
        for kind, limit in ((getattr(resource, f"RLIMIT_{name}"), limit) for name, limit in limits.items()):
            already = resource.getrlimit(kind)[1]
            limit = limit if already == resource.RLIM_INFINITY else min(limit, already)
            resource.setrlimit(kind, (limit, limit))
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    for path in sorted(folder.glob("*.dcm")):
        image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
        sitk.GetArrayFromImage(image).astype("<i4").tofile(path.with_suffix(DECODED))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
