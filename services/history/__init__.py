"""What the workers did and found over the last day, for charts."""
