"""Password resets: a link by mail, which works once."""
