"""The statement of an account, as pages and as CSV."""
