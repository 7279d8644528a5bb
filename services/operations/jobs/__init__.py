"""HTTP for the jobs that run on a schedule."""
