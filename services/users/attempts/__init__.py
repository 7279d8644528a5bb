"""Password attempts, counted so that guessing becomes ever slower."""
