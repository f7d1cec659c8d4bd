#!/usr/bin/env python3
"""The point-cloud visualizer: skull, points, prior, implant, candidates and the diffusion of a case, step by step.

usage: visualize.py CASE [--skull SKULL] [--truth IMPLANT] [--html PAGE.html] [--png PICTURE.png]

The same as `pcdiff view`. For points and the diffusion, design the case with `pcdiff design --keep-points`.
"""

import sys

from pcdiff.cli.app import main

if __name__ == "__main__":
    main(["view", *sys.argv[1:]])
