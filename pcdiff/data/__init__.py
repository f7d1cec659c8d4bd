"""Data sets, heads, virtual craniotomies and phantoms: what methods are trained and evaluated on."""
