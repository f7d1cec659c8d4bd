#!/usr/bin/env python3
"""Checks the Python examples of docs/api.md by `mypy --strict`, as a user's own file beside an installed pcdiff.

usage: check_examples.py
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
CACHE = ROOT / ".mypy_cache" / "examples"


def main() -> None:
    """Exits with mypy's code."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    with tempfile.TemporaryDirectory() as folder:  # outside of the clone, so that mypy finds the installed package
        (Path(folder) / "examples.py").write_text("\n\n".join(blocks))
        command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={CACHE}", "examples.py"]
        sys.exit(subprocess.run(command, cwd=folder, check=False).returncode)


if __name__ == "__main__":
    main()
