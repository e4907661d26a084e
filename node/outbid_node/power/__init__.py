"""Joules and dollars: what this machine draws, what of it a job caused, and what that cost."""
