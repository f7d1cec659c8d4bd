"""From a scan to an implant's files: the flow, its settings, and the record of each case."""
