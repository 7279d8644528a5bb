"""What is measured, each as one command that prints a table with ratios."""
