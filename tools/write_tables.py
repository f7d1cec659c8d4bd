"""Writes the tables of README.md and MODEL_CARD.md from what `pcdiff evaluate` measured.

    python tools/write_tables.py                                # of docs/results/*.json
    python tools/write_tables.py out/evaluation/results.json    # of others

In both documents what stands between `<!-- results -->` and `<!-- /results -->` becomes the table of the data set's own
defects, and what stands between `<!-- variants -->` and `<!-- /variants -->` that of a suite's variants.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from pcdiff.data.suite import SKULLBREAK

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "MODEL_CARD.md")
DIGITS = {"dsc": 3, "bdsc": 3, "hd95": 2, "seconds": 1, "peak_mb": 0, "spread_error": 2}
GROUPS = {
    "SkullBreak's five classes, mean of classes": SKULLBREAK,
    "irregular and two_defects": ("irregular", "two_defects"),
}

Found = Mapping[str, Any]  # of a method, as `Results.summary` has it


def columns(files: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Name of each column -> its method and results; the first file that has one wins."""
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for results in files:
        for method in results["summary"]:
            several = results["ensemble"] > 1 and method != "prior"  # of which all members are the same
            found.setdefault(f"{method}, {results['ensemble']} candidates" if several else method, (method, results))
    return found


def own_table(files: Sequence[Mapping[str, Any]]) -> str:
    """The data set's own defects, one row a column's name; seconds of one case at a time only."""
    lines = [
        "| method | DSC, mean | bDSC, mean | HD95 mm, mean | seconds, mean | peak MB, mean | DSC, worst | failed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (method, results) in columns(files).items():
        own = results["kinds"].get("own") if results["kinds"] else results["summary"]
        if own is None:  # harder cases alone
            continue
        found = own[method]
        figures = [number(found["mean"][figure], figure) for figure in ("dsc", "bdsc", "hd95", "seconds", "peak_mb")]
        if results["workers"] > 1:
            figures[3] = ""
        failed = f"{len(found['failed'])} of {found['cases']}"
        lines.append(f"| {name} | {' | '.join(figures)} | {number(found['worst']['dsc'], 'dsc')} | {failed} |")
    return "\n".join([*lines, "", origin(files)])


def variants_table(files: Sequence[Mapping[str, Any]]) -> str:
    """A suite's variants and groups of them, one row each; then what was refused, and spread against error."""
    files = [results for results in files if results["kinds"]]
    if not files:
        return ""
    methods = columns(files)
    kinds = list(dict.fromkeys(kind for results in files for kind in results["kinds"]))
    rows = {kind: (kind,) for kind in kinds} | GROUPS
    lines = ["| DSC / bDSC / HD95 mm / worst DSC | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for title, group in rows.items():
        cells = []
        for method, results in methods.values():
            cells.append(cell([results["kinds"].get(kind, {}).get(method) for kind in group]))
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")
    refused, spread = [], []
    for name, (method, results) in methods.items():
        asked = {kind: found[method] for kind, found in results["kinds"].items() if found[method]["refusals"]}
        if asked:
            counts = ", ".join(f"{kind} {found['refused']} of {found['refusals']}" for kind, found in asked.items())
            refused.append(f"{name}: {counts}")
        rho = results["summary"][method]["mean"]["spread_error"]
        if rho is not None:
            spread.append(f"{name}: {number(rho, 'spread_error')}")
    if refused:
        lines += ["", f"Refused with a reason, as it should be: {'; '.join(refused)}."]
    if spread:
        lines += [
            "",
            f"Spread of candidates against error by points, Spearman's rho, mean: {'; '.join(spread)}.",
        ]
    return "\n".join(lines)


def cell(group: Sequence[Found | None]) -> str:
    """Means over kinds, and the worst of all; empty where one was not measured, or has nothing to score."""
    found = [one for one in group if one and one["cases"]]
    if len(found) < len(group):
        return ""
    figures = []
    for name in ("dsc", "bdsc", "hd95"):
        values = [one["mean"][name] for one in found]
        figures.append(number(None if None in values else mean(values), name))
    figures.append(number(min(one["worst"]["dsc"] for one in found), "dsc"))
    failed = sum(len(one["failed"]) for one in found)
    return " / ".join(figures) + (f" ({failed} failed)" if failed else "")


def origin(files: Sequence[Mapping[str, Any]]) -> str:
    """What was measured, and by which weights."""
    hashes: dict[str, list[str]] = {}
    for name, sha in (item for results in files for one in results["weights"].values() for item in one.items()):
        if sha[:12] not in hashes.setdefault(name, []):
            hashes[name].append(sha[:12])
    weights = ", ".join(f"`{name}` {' and '.join(shas)}" for name, shas in sorted(hashes.items()))
    versions = ", ".join(sorted({f"pcdiff {results['pcdiff']}" for results in files}))
    return f"{versions}; weights (sha256): {weights}."


def number(value: float | None, figure: str) -> str:
    """None is what JSON has for infinity: the HD95 of a failure."""
    return "inf" if value is None else f"{value:.{DIGITS[figure]}f}"


def ablation_table(results: Mapping[str, Any]) -> str:
    """What `tools/ablate.py` measured, one row each; seconds of one case at a time only."""
    lines = ["| | DSC | bDSC | HD95 mm | worst DSC | seconds |", "|---|---|---|---|---|---|"]
    for row in results["rows"]:
        # a digit more than elsewhere: what parts give is small
        figures = [f"{row[name]:.4f}" for name in ("dsc", "bdsc")] + [number(row["hd95"], "hd95")]
        seconds = number(row["seconds"], "seconds") if results["workers"] == 1 else ""
        lines.append(f"| {row['variant']} | {' | '.join(figures)} | {row['worst_dsc']:.4f} | {seconds} |")
    return "\n".join(lines)


def write(tables: Mapping[str, str], documents: Sequence[Path]) -> None:
    """Puts each table between its markers in each document."""
    for document in documents:
        text = document.read_text(encoding="utf-8")
        for name, table in tables.items():
            marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
            text, count = marked.subn(lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text)
            if count != 1:
                raise SystemExit(f"{document.name}: expected one pair of {name} markers, found {count}")
        document.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    paths = parser.parse_args().results or sorted((ROOT / "docs" / "results").glob("*.json"))
    if not paths:
        raise SystemExit("expected docs/results/*.json or files by name, found none; run `pcdiff evaluate` first")
    files = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    measured = [results for results in files if "summary" in results]
    write({"results": own_table(measured), "variants": variants_table(measured)}, DOCUMENTS)
    for results in files:
        if "rows" in results and "summary" not in results:
            write({"ablation": ablation_table(results)}, [ROOT / "docs" / "experiments.md"])


if __name__ == "__main__":
    main()
