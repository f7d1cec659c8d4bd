"""New heads from given ones, for training."""
