"""What the tests and the benchmarks are made with."""
