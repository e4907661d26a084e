"""Outbid without `await`, for scripts, notebooks and threads.

from outbid.sync import Mesh

with Mesh() as mesh:
    for chunk in mesh.chat("Why is the sky blue?"):
        print(chunk.text, end="")
"""

from outbid.sync.mesh import Mesh
from outbid.sync.results import Artifact, ChatStream, Drawing, Job, Mapped, NodeHandle, Picture, Pictures

__all__ = ["Artifact", "ChatStream", "Drawing", "Job", "Mapped", "Mesh", "NodeHandle", "Picture", "Pictures"]
