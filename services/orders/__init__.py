"""Orders: placing, processing, refunds and expiry."""
