"""Anchored diffusion: points start on the shape model's surface and a network moves them."""
