"""Evaluation of methods: each runs on many cases, from file to file, and is scored."""
