"""Many cases on many processes or machines, by Dask: which scans, which memory, who works, and the table of results."""
