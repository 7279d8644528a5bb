"""What events say, compared with the rows that they are about."""
