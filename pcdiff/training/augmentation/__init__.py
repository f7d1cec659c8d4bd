"""Augmentation with heads: generative models are trained, and data sets of new heads with defects are written."""
