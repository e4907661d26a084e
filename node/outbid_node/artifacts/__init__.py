"""Artifacts on a node: its store, what goes into it and comes out of it, and who is asked for what is elsewhere."""
