"""What operators put right: reversals and adjustments."""
