"""pcdiff designs patient-specific cranial implants by anchored point-voxel diffusion.

Not a medical device. Everything is in patient millimetres, LPS, unless a name says otherwise.
Importing this package loads neither torch nor open3d; each module loads what it needs.
"""

__version__ = "0.1.0"

NOTICE = "Not a medical device: for research only, not for diagnosis or treatment."
