"""What one node needs to be of its mesh, as files and as text for its servers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import NodeId
from outbid_node.bus.files import private_folder, write_private
from outbid_node.identity import certificates, jwt
from outbid_node.identity.entry import enter
from outbid_node.identity.keys import MeshKey, SigningKey


@dataclass(frozen=True, slots=True)
class RouteFiles:
    """TLS between routers: where the parts are, and the pin that a peer must show."""

    authority: Path
    certificate: Path
    key: Path
    pin: str


class Identity:
    """Made from the mesh key for one node. `write` it before a server starts."""

    def __init__(
        self, key: MeshKey, node: NodeId, state: Path, *, name: str = "", revoked: Mapping[str, int] | None = None
    ) -> None:
        self.key = key
        self.node = node
        self.name = name or node
        self.revoked = dict(revoked or {})
        self._folder = (state / "identity").absolute()
        self._tls = certificates.issue(key, node)
        self.routes = RouteFiles(
            authority=self._folder / "ca.pem",
            certificate=self._folder / "route.pem",
            key=self._folder / "route.key",
            pin=self._tls.pin,
        )
        self.node_creds = self._folder / "node.creds"
        self.local_creds = (state / "local.creds").absolute()

    @property
    def mesh(self) -> str:
        """The public id of the mesh."""
        return self.key.id

    @property
    def account(self) -> str:
        """The public key of the account that everything of the mesh is in."""
        return self.key.account.public

    def auth(self) -> str:
        """The lines that tell a nats-server whom it trusts. No secret is in them."""
        key = self.key
        accounts = {
            key.system_account.public: jwt.system_account(key),
            key.account.public: jwt.mesh_account(key, self.revoked),
        }
        preload = "\n".join(f"  {public}: {text}" for public, text in accounts.items())
        return (
            f"operator: {jwt.operator(key)}\nsystem_account: {key.system_account.public}\n"
            f"resolver: MEMORY\nresolver_preload {{\n{preload}\n}}"
        )

    def write(self) -> None:
        """Certificates, and new credentials for the node and for programs of its user on the same machine. Raises
        OutbidError if they cannot be written.

        These credentials do not expire: nats-py gives up for good when they do, and the route key beside them could
        not expire either. What ends them is another mesh key.
        """
        files, tls = self.routes, self._tls
        texts = {
            files.authority: tls.authority,
            files.certificate: tls.certificate,
            files.key: tls.key,
            self.node_creds: jwt.credentials(*self._user("node", "node")),
            self.local_creds: jwt.credentials(*self._user("admin", "local")),
        }
        try:
            private_folder(self._folder)
            for file, text in texts.items():
                write_private(file, text)
        except OSError as error:
            raise OutbidError(
                f"{self._folder} cannot be written: {error.strerror or error}; free some space"
            ) from error

    async def enter(self, port: int) -> str | None:
        """Why the server of this node on that loopback port does not let the node in; None if it does."""
        return await enter(port, *self._user("node", "node"))

    def _user(self, role: str, who: str) -> tuple[str, SigningKey]:
        """The same user at every start, so that its inbox keeps its name."""
        user = self.key.user(f"{who} {self.node}")
        return jwt.user(self.key, role, f"{who} {self.name}", user.public, expires_s=None), user
