"""Other job queues, each run by `python -m benchmarks.peers.run_NAME` with the Python of `.venv-bench`.

The job comes in as JSON, what was seen goes out as JSON. Each does the same: so many trivial async jobs wait, one
process works them off; the time runs from the first job's start until the last one is acknowledged in the server.
"""
