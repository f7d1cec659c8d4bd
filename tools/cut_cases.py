"""Cuts defects of six kinds into the heads of a data set: training cases for the published model, which reads cases.

    python tools/cut_cases.py data/skullfix data/cuts --cases 000-062 --skip 052

Each head gets its own defect and two of SkullBreak's five classes, taken in turns. The folder that is printed at the
end is a data set in SkullBreak's layout, in which `own` is one more class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from pcdiff.data.cases import find_cases
from pcdiff.data.suite import SKULLBREAK, write_suite


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", default="000-059")
    parser.add_argument("--skip", action="append", default=[], help="a head to leave out")
    options = parser.parse_args()
    heads = [case for case in find_cases(options.data, options.cases) if case.name not in options.skip]
    if not heads:
        parser.error(f"expected heads to cut, got none: --cases {options.cases} without {', '.join(options.skip)}")
    for number, head in enumerate(tqdm(heads, unit="head")):
        kinds = [SKULLBREAK[(number + turn) % len(SKULLBREAK)] for turn in (0, 2)]
        made = write_suite(("own", *kinds), [head], options.out, progress=False)
    skull = made[0].defective_skull
    assert skull is not None
    print(skull.parents[2])


if __name__ == "__main__":
    main()
