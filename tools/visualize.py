#!/usr/bin/env python3
"""Shows a case in 3D: skull, implant, candidates and points, step by step. The same as `pcdiff view`.

usage: visualize.py CASE [--skull SKULL] [--truth IMPLANT] [--html PAGE.html] [--png PICTURE.png]

Points and sampling steps need a case that was designed with `--keep-points`.
"""

import sys

from pcdiff.cli.app import main

if __name__ == "__main__":
    main(["view", *sys.argv[1:]])
