"""Counts words. The daemon imports `declaration` only, the child process that does the work `runner` only."""
