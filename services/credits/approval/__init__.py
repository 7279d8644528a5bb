"""Four eyes: what the staff does with credits on its own, and when a second operator must approve."""
