"""Checks of an implant: the criteria that surgeons apply (Ellis et al.), as figures; and whether it can be printed."""

from pcdiff.checks.implant import check_implant, surroundings
from pcdiff.checks.insertion import removal_paths
from pcdiff.checks.ray_view import CompletedVault
from pcdiff.checks.report import Check, Figure, Report

__all__ = ["Check", "CompletedVault", "Figure", "Report", "check_implant", "removal_paths", "surroundings"]
