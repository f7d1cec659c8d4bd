"""The data for training and evaluation: data sets, reduced heads, virtual craniotomies and phantoms."""
