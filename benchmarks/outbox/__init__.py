"""The performance and cost of the outbox engine: `python -m benchmarks.outbox`."""
