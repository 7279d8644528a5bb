"""The catalogue: categories, products and what is in stock."""
