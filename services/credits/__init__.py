"""Credits: accounts, transfers and entries."""
