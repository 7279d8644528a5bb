"""ARQ jobs. Redis may lose one or run it twice: each is safe to repeat, and a later run makes up for a lost one."""
