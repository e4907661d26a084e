"""The systems that Outbid is compared with: a no-op job on each, driven alike.

`systems` lists them with what they promise, `running` starts one, `servers` has the servers they need, `rounds`
measures them in turns, and `on_…` is one of them as its users would write it, run in a process of its own.
"""
