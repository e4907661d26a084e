"""Waking machines that are away: who they are, by which hardware address they hear, and the packet that they hear."""
