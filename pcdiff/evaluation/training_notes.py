"""What a weights file says of its training: samples seen, seconds, and the device."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from pcdiff.tensor_files import read_metadata


def training_notes(weights: Path | None) -> dict[str, Any]:
    """`windows`, samples seen in training, `seconds` of wall time, and `device`; what the file does not say is absent.

    Our trainers write these keys into the metadata. Weights of an earlier version have `samples`, or `step` and the
    batch of their recipe; their seconds are not known.
    """
    found = (read_metadata(weights) if weights is not None else None) or {}
    notes: dict[str, Any] = {}
    with suppress(KeyError, ValueError, TypeError):
        windows = found.get("windows") or found.get("samples")
        notes["windows"] = int(windows or int(found["step"]) * json.loads(found["recipe"])["optimiser"]["batch"])
    with suppress(KeyError, ValueError):
        notes["seconds"] = float(found["seconds"])
    if "device" in found:
        notes["device"] = found["device"]
    return notes
