"""From a head scan to a mask of the skull, and from masks to files."""
