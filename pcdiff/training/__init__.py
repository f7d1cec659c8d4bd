"""Training of the networks, by recipes."""
