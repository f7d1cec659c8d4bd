"""Training of the anchored diffusion."""
