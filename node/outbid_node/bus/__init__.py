"""The servers of one node, and how nodes find each other."""
