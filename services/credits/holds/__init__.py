"""Credits held for somebody: pending transfers, posted or voided later."""
