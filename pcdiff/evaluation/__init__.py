"""Methods run on many cases, from file to file, and scored."""
