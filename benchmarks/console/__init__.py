"""What operators read, with very many rows: the console's pages, their JSON twins, and the commands."""
