"""The terminal face: the whole mesh on one screen, as a thin client of the SDK."""
