"""The command line: `pcdiff`."""

from pcdiff.cli.app import main

__all__ = ["main"]
