//! End-to-end harness, tests, benchmarks and the demo of Satchel.
