"""What this machine has, read cheaply and part by part; and what of it is announced to others."""

from outbid_node.resources.announce import announcement
from outbid_node.resources.probe import ResourceProbe

__all__ = ["ResourceProbe", "announcement"]
