"""A storm over real processes: load, clients that leave, and faults in everything beneath, all from one seed."""
