"""What each role may publish and hear: the one declaration that credentials and docs/reference/roles.md are made from.

The servers enforce it, on every node, by the permissions that the mesh account gives the role's signing key. Patterns
are NATS subjects; an empty `allow` means everything in the mesh's account, and `deny` wins over `allow`.

Replies are private: a user hears the inbox with its own key in the name and nobody else's. Clients must therefore be
told their inbox prefix (`--inbox-prefix`, `inbox_prefix=`), which `inbox_prefix(credentials)` makes.
"""

from __future__ import annotations

import base64
import json
import re

import msgspec

from outbid_contracts.subjects import RESERVED

ROLE_NAMES = ("viewer", "submitter", "admin", "node")

INBOX = "_INBOX"
"""Every reply subject begins with this. A node sends replies nowhere else, whatever a request asks for."""

OWN_INBOX = "_INBOX_{{subject()}}.>"
"""The server puts the user's public key in the place of `{{subject()}}`."""

_READ = ("mesh.nodes.list", "mesh.models.list", "mesh.jobs.list", "mesh.jobs.get", "mesh.watch", "$SRV.>")
_WATCH = (OWN_INBOX, "mesh.presence.*", "mesh.job.*.event", "mesh.auction.*")
_WATCH_LOGS = ("mesh.log.*",)
_WORK = ("mesh.*.*", "mesh.*.*.*")
_FOR_FACES = {"nodes", "models", "jobs", "artifacts", "history", "admin"}
_BETWEEN_NODES = tuple(f"mesh.{word}.>" for word in sorted(RESERVED - _FOR_FACES))
"""Every other first word that is no capability's: a new one is closed until someone opens it."""
_ADMIN = "mesh.admin.>"

_READ_STREAMS = tuple(
    f"$JS.{where}API.{verb}"
    for where in ("", "*.")
    for verb in (
        "INFO",
        "STREAM.NAMES",
        "STREAM.LIST",
        "STREAM.INFO.*",
        "STREAM.MSG.GET.*",
        "DIRECT.GET.*",
        "DIRECT.GET.*.>",
        "CONSUMER.CREATE.*",
        "CONSUMER.CREATE.*.>",
        "CONSUMER.INFO.*.*",
        "CONSUMER.DELETE.*.*",
    )
)
"""What `nats object ls | info | get` and every other client of the object store asks of JetStream, of this node or, by
domain, of any other.

Two things make it the administrator's alone. A wildcard is a whole token, so this cannot be said of the streams
`OBJ_ARTIFACTS_<node>` only: it reads durable jobs too. And JetStream, whom no permission binds, publishes to the inbox
that a consumer or a direct get names, whatever it is: a message of a stream could be made to appear on a subject
between nodes. An administrator can invite a node, and so has the key of the mesh anyway; a submitter gets artifacts
from `mesh.artifacts.read`, which answers inboxes only.
"""

_FLOW_CONTROL = "$JS.FC.>"
"""Where the reader of a consumer says that it keeps up."""


class Rules(msgspec.Struct, frozen=True):
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


class Role(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    summary: str
    publish: Rules
    subscribe: Rules
    links: bool = False
    """May connect a server (a leaf node), not only a client."""


ROLES: dict[str, Role] = {
    "viewer": Role(
        name="viewer",
        summary="sees machines, models and jobs; changes nothing",
        publish=Rules(allow=_READ),
        subscribe=Rules(allow=_WATCH),
    ),
    "submitter": Role(
        name="submitter",
        summary="sees, and puts work to the mesh: jobs of every capability, cancelling them",
        publish=Rules(allow=("$SRV.>", "mesh.watch", *_WORK), deny=(_ADMIN, *_BETWEEN_NODES)),
        subscribe=Rules(allow=_WATCH),
    ),
    "admin": Role(
        name="admin",
        summary="a submitter who may also give nodes orders, and read what they store; programs on a node's own machine"
        " have this role",
        publish=Rules(
            allow=("$SRV.>", "mesh.watch", *_WORK, _ADMIN, *_READ_STREAMS, _FLOW_CONTROL), deny=_BETWEEN_NODES
        ),
        subscribe=Rules(allow=(*_WATCH, *_WATCH_LOGS)),
    ),
    "node": Role(
        name="node",
        summary="a daemon and its servers: everything in the mesh's account (`$SYS` is in another)",
        publish=Rules(),
        subscribe=Rules(),
        links=True,
    ),
}

_JWT = re.compile(r"-----BEGIN NATS USER JWT-----\s+([\w-]+\.[\w-]+\.[\w-]+)\s")


def user_of(credentials: str) -> str:
    """The user's public key (U…) in the text of a `.creds` file. Raises ValueError if it is not one."""
    found = _JWT.search(credentials)
    if found is None:
        raise ValueError("no NATS user JWT in it")
    claims = found[1].split(".")[1]
    user = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4))).get("sub", "")
    if not re.fullmatch(r"U[A-Z2-7]{55}", user):
        raise ValueError("its JWT is not a user's")
    return str(user)


def inbox_prefix(credentials: str) -> str:
    """Where the owner of these credentials may receive replies: `_INBOX_U…`. Raises ValueError."""
    return f"{INBOX}_{user_of(credentials)}"


_USER_INBOX = re.compile(rf"{INBOX}_(U[A-Z2-7]{{55}})\.")


def submitter_of(reply: str) -> str:
    """The user (U…) whose inbox that is; "" if it names none. It is the caller's word: whoever names another's inbox
    has its jobs counted for that user, and gets no answer.
    """
    found = _USER_INBOX.match(reply)
    return found[1] if found else ""


def is_inbox(reply: str) -> bool:
    """Whether a node may send an answer there. The servers check what a user publishes, not where the user asks a
    node to reply: without this, a viewer's request could make a node speak on a subject closed to viewers.
    """
    return reply.startswith((f"{INBOX}.", f"{INBOX}_"))
