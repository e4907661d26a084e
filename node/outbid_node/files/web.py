"""One file behind a URL, known by its size and by what the server says of its version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outbid_contracts.errors import PullFailed
from outbid_node.files.http import host_of, opened
from outbid_node.files.plan import Plan, PlannedFile
from outbid_node.files.source import Web

if TYPE_CHECKING:
    import httpx


def plan(http: httpx.Client, source: Web, sha256: str = "") -> Plan:
    """Asks for one byte, and learns the size from the answer. Raises PullFailed or Again."""
    with opened(http, source.url, 0, 1) as response:
        size = size_of(response)
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise PullFailed(f"{source.url} is a web page, not a model; perhaps {host_of(source.url)} wants a login")
        etag = etag_of(response)
    file = PlannedFile(path=source.file, size=size, sha256=sha256, url=source.url, etag=etag)
    return Plan(source=str(source), kind="gguf" if source.file.lower().endswith(".gguf") else "file", files=(file,))


def size_of(response: httpx.Response, known: int | None = None) -> int:
    """Of the whole file; `known` where the server does not say. Raises PullFailed if that is not known either: then
    nobody could tell if it came whole.
    """
    if response.status_code == 206:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        total = response.headers.get("Content-Length", "")
    if not total.isdecimal() and known is not None:
        return known
    if not total.isdecimal():
        raise PullFailed(f"{host_of(str(response.url))} does not say how large the file is")
    return int(total)


def etag_of(response: httpx.Response) -> str:
    return str(response.headers.get("ETag") or response.headers.get("Last-Modified") or "")[:200]
