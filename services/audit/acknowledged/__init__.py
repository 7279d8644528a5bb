"""What stored replies acknowledged, compared with what is stored."""
