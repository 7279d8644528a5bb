"""What operators see: what waits, what failed, whether the books balance."""
