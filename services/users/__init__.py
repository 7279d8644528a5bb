"""Users: registration, sign-in and roles."""
