"""Tools for the tests and the benchmarks."""
