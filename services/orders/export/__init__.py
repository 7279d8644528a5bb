"""Orders as CSV and as newline-delimited JSON."""
