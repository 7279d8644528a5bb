"""Orders: from placed to their end."""
