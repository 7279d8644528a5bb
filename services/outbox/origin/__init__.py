"""Whether the transaction ids and sequences that this database stores belong to the cluster that it is in."""
