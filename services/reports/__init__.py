"""Reports: what was sold and refunded, and what became of orders, in the analytics database."""
