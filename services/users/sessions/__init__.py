"""Sessions: a person who is signed in on one device, and the refresh tokens that extend it."""
