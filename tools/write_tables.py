"""Writes the README's table from what `pcdiff evaluate` measured.

usage: python tools/write_tables.py results/results.json
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
COLUMNS = (
    ("dsc", "DSC", 3),
    ("bdsc", "bDSC", 3),
    ("hd95", "HD95 mm", 2),
    ("seconds", "seconds", 1),
    ("peak_mb", "peak MB", 0),
)


def table(results: dict) -> str:
    """Mean and worst of each method, one row a method, as Markdown."""
    head = "| method | " + " | ".join(f"{title}, mean" for _, title, _ in COLUMNS) + " | DSC, worst | failed |"
    lines = [head, "|---" * (len(COLUMNS) + 3) + "|"]
    for method, found in results["summary"].items():
        means = found["mean"]  # null: infinite, as when a case failed
        figures = ["inf" if means[name] is None else f"{means[name]:.{digits}f}" for name, _, digits in COLUMNS]
        failed = f"{len(found['failed'])} of {found['cases']}"
        lines.append(f"| {method} | {' | '.join(figures)} | {found['worst']['dsc']:.3f} | {failed} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    results = json.loads(parser.parse_args().results.read_text())
    marked = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
    text, count = marked.subn(lambda m: f"{m[1]}{table(results)}\n{m[2]}", README.read_text())
    if count != 1:
        raise SystemExit(f"{README.name}: expected one pair of results markers, found {count}")
    README.write_text(text)


if __name__ == "__main__":
    main()
