"""Writes the tables of README.md, MODEL_CARD.md and docs/ from the results of `pcdiff evaluate`.

    python tools/write_tables.py                                # from docs/results/*.json
    python tools/write_tables.py out/evaluation/results.json    # from other files

In README.md and MODEL_CARD.md the text between `<!-- results -->` and `<!-- /results -->` becomes the table of the data
set's own defects; in MODEL_CARD.md and docs/accuracy.md that between `<!-- variants -->` and `<!-- /variants -->` the
table of a suite's variants. Results of
tools/ablate.py become the table of docs/experiments.md between `<!-- ablation -->` and `<!-- /ablation -->`, and those
of tools/merge_results.py that of docs/methods.md between `<!-- methods -->` and `<!-- /methods -->`. Those of
tools/benchmark.py become the table of docs/benchmark.md between `<!-- speed -->` and `<!-- /speed -->`. Those of
tools/measure_networks.py become the tables of docs/augmentation.md between `<!-- gains -->` and `<!-- /gains -->`, and
of docs/experiments.md between `<!-- inputs -->` and `<!-- /inputs -->`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pcdiff.evaluation.methods_table import methods_table
from pcdiff.evaluation.speed import speed_table
from pcdiff.evaluation.tables import ablation_table, lattice_table, own_defects_table, variants_table

ROOT = Path(__file__).parent.parent
OWN = (ROOT / "README.md", ROOT / "MODEL_CARD.md")
VARIANTS = (ROOT / "MODEL_CARD.md", ROOT / "docs" / "accuracy.md")


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
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    paths = parser.parse_args().results or sorted((ROOT / "docs" / "results").glob("*.json"))
    if not paths:
        raise SystemExit("expected docs/results/*.json or files by name, found none; run `pcdiff evaluate` first")
    files = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    measured = [results for results in files if "summary" in results]
    if measured:
        write({"results": own_defects_table(measured)}, OWN)
        write({"variants": variants_table(measured)}, VARIANTS)
    for results in files:
        if "variants" in results:
            write({"ablation": ablation_table(results)}, [ROOT / "docs" / "experiments.md"])
        if "inputs" in results:
            write({"inputs": lattice_table(results["inputs"]["networks"])}, [ROOT / "docs" / "experiments.md"])
        if "augmentation" in results:
            gains = lattice_table({"": results["augmentation"]["variants"]})
            write({"gains": gains}, [ROOT / "docs" / "augmentation.md"])
        if "methods" in results:
            write({"methods": methods_table(results)}, [ROOT / "docs" / "methods.md"])
        if "load" in results:
            write({"speed": speed_table(results)}, [ROOT / "docs" / "benchmark.md"])


if __name__ == "__main__":
    main()
