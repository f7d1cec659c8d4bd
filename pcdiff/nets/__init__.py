"""Building blocks of networks: they know points and grids, no feature builder and no method."""
