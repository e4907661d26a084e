"""What a node tells while somebody looks on: auctions, events of every job, log lines; otherwise nothing, at no cost.

Anybody in the mesh may ask for it, so each of these is bounded by a rate, whatever is asked and however much happens.
"""
