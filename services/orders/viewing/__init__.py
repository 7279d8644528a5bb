"""What each party sees of an order."""
