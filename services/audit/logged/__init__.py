"""What events say, compared with the rows that they tell of."""
