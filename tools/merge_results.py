"""Puts evaluations of different methods on the same cases into docs/results/methods.json.

    python tools/merge_results.py runs/*/results.json                   # in place of what the file holds
    python tools/merge_results.py docs/results/methods.json new/results.json
    python tools/merge_results.py runs/*/results.json --common          # the cases that all methods have been run on

The second form adds a method, or measures one again. Then `python tools/write_tables.py` writes docs/methods.md, and
`pcdiff compare docs/results/methods.json` compares the methods.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pcdiff.errors import InputError
from pcdiff.evaluation.merging import merge, write_merged

OUT = Path(__file__).parent.parent / "docs" / "results" / "methods.json"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=OUT)
    parser.add_argument("--common", action="store_true", help="leave out cases that not all methods have")
    args = parser.parse_args()
    try:
        record = merge(args.results, args.common)
    except InputError as error:
        raise SystemExit(str(error)) from error
    write_merged(args.out, record)
    methods = record["methods"]
    print(f"{args.out}: {len(record['rows'])} rows of {len(methods)} methods: {', '.join(methods)}")


if __name__ == "__main__":
    main()
