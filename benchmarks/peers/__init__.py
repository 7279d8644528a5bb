"""Other job queues, each run by `python -m benchmarks.peers.run_NAME` with the Python of `.venv-bench`.

Each reads its parameters as JSON and prints its results as JSON. All do the same: one process runs a number of waiting,
trivial async jobs; the time is measured from the start of the first job until the server has acknowledged the last.
"""
