"""What this node did and saw, kept in one DuckDB file: jobs, attempts, bids, runs, samples, model loads, events.

Prompts and outputs are never in it.
"""
