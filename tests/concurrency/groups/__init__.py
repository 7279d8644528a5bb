"""Random requests, and the worlds in which they are sent: through the single path and in groups."""
