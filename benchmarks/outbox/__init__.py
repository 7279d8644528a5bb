"""What the outbox engine does and what it costs: `python -m benchmarks.outbox`."""
