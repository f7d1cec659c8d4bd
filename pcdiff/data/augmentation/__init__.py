"""New heads from given ones, for training: registration, and generative models of maps of the skull."""
