"""Cuts virtual defects into the complete skulls of a data set: a folder in SkullBreak's layout, for `pcdiff evaluate`.

usage: python tools/cut_cases.py skullfix --cases 060-074 --kinds frontoorbital,random_1 -o cut
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pcdiff.data import find_cases
from pcdiff.defects import KINDS, cut
from pcdiff.volume import read_volume, write_volume

SKULLBREAK = "bilateral,frontoorbital,parietotemporal,random_1,random_2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with complete_skull/")
    parser.add_argument("--cases", help="some cases only: 060-074")
    parser.add_argument("--kinds", default=SKULLBREAK, help=f"with commas: {', '.join(KINDS)}")
    parser.add_argument("--holes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    for case in find_cases(args.data, args.cases):
        if case.complete_skull is None:
            continue
        skull = read_volume(case.complete_skull)
        for kind in args.kinds.split(","):
            # a seed of its own for each head and kind: a subset is cut as the whole would be
            rng = np.random.default_rng(
                [args.seed, int.from_bytes(case.complete_skull.stem.encode()), [*KINDS].index(kind)]
            )
            parts = cut(skull, kind, rng, args.holes)
            for part, volume in zip(("defective_skull", "implant"), parts, strict=True):
                path = args.out / part / kind / case.complete_skull.name
                path.parent.mkdir(parents=True, exist_ok=True)
                write_volume(volume, path)
            print(f"{kind}/{case.complete_skull.stem}: {parts[1].ml:.1f} ml")


if __name__ == "__main__":
    main()
