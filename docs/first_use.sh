#!/bin/sh
# From one folder of DICOM slices to a printed plan of the implant, on Linux and macOS:
#
#     sh docs/first_use.sh DICOM OUT
#
# DICOM is a folder as scanner or PACS export it, OUT a new folder. Python 3.11 to 3.13 has to be there. Run it in a
# clone; after a release, pcdiff-cranial takes the place of the dot in the second command. Further arguments go to the
# third and the fourth, for example `--series 2` where the third says that the folder holds several.
# Not a medical device: for research only, not for diagnosis or treatment.
set -eu
dicom=$1 out=$2
shift 2

# An environment of its own: many systems let nothing be installed into theirs.
python3 -m venv .venv

# pcdiff and what it needs. On Linux torch comes with gigabytes for CUDA; install.md says how to leave them out.
.venv/bin/pip install .

# What the scan is, its warnings, and each defect with place and area. It ends here if there is none.
.venv/bin/pcdiff info "$dicom" "$@"

# The implant: OUT/NAME/implant.stl to print, report.html to look at, and the other files of docs/files.md.
.venv/bin/pcdiff design "$dicom" -o "$out" "$@"

# The plan on paper, A4, by Chromium, Chrome or Edge. Without one of them: open report.html in any browser and print it.
.venv/bin/pcdiff report "$out"/*/ --pdf "$out/plan.pdf"
