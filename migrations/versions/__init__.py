"""One numbered file per step; each is self-contained and never changed in what it makes after its release."""
