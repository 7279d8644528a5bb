"""A storm over real processes: load, clients that leave, and faults of everything beneath, from one seed."""
