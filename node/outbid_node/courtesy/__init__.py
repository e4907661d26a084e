"""Politeness towards the person whose machine this is: when the node works for others, how much, and when not at all.

Readings are taken in a thread, once a second (`watch`). Each rule is a module of its own that turns them into its part
of the node's terms; the strictest count (`parts`).
"""
