"""One file per step, numbered; each is complete in itself and is never edited once released."""
