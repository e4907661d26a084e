"""`mesh.admin.<me>.export`: this node's history as Parquet files in its own folder, for who may read that."""

from __future__ import annotations

import msgspec

from outbid_contracts import subjects
from outbid_contracts.admin import ExportReply, ExportRequest
from outbid_contracts.codec import Format, decode
from outbid_contracts.errors import InvalidRequest, NoHistoryKept, OutbidError
from outbid_contracts.ids import NodeId
from outbid_node.history.assembly import NodeHistory
from outbid_node.history.damage import Unusable
from outbid_node.history.export import Exported, Wanted
from outbid_node.history.schema import KINDS
from outbid_node.micro import Request, Service

WITHIN_S = 300.0
"""A full history on a slow disk."""


class ExportDesk:
    def __init__(self, me: NodeId, history: NodeHistory) -> None:
        self._me = me
        self._history = history

    def register(self, service: Service) -> None:
        service.add("admin-export", subjects.admin(self._me, "export"), self.export, queue=str(self._me))

    async def export(self, request: Request) -> None:
        asked = _read(request)
        if unknown := [table for table in asked.tables if table not in KINDS]:
            raise InvalidRequest(f"there is no table {unknown[0]!r} in a history; there are {', '.join(KINDS)}")
        wanted = msgspec.msgpack.encode(Wanted(tables=asked.tables))
        try:
            done = msgspec.msgpack.decode(await self._history.log.ask("export", wanted, WITHIN_S), type=Exported)
        except Unusable as error:
            raise NoHistoryKept(str(error)) from error
        except (TimeoutError, RuntimeError) as error:
            raise OutbidError(f"the history was not exported: {error or 'it took too long'}") from error
        request.respond(ExportReply(node=self._me, folder=done.folder, rows=done.rows))


def _read(request: Request) -> ExportRequest:
    if request.read_format() is Format.TEXT and request.data:
        raise InvalidRequest("this takes a JSON object")
    asked: ExportRequest = decode(request.data or b"{}", ExportRequest, request.format if request.data else Format.JSON)
    return asked
