"""The ledger: accounts and their entries, to which every movement of credits is written."""
