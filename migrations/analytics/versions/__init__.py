"""One numbered file per step; each is self-contained and never edited after its release."""
