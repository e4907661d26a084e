"""Child processes that hold models: `RunnerPool` is all the rest of the node needs."""

from outbid_node.runners.pool import AttemptSink, Room, RunnerPool

__all__ = ["AttemptSink", "Room", "RunnerPool"]
