"""HTTP as all downloads use it. Blocking: for threads. httpx is imported when it is first needed (60 ms)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from outbid_contracts.errors import OutbidError, PullFailed

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 15.0
MAX_ANSWER_BYTES = 32 * 2**20
"""Of a listing or a settings file."""

MAX_REDIRECTS = 8


class Again(OutbidError):
    """It may work in a moment. `after_s`: what the server asked for, if it did."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


def hub_url() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def client() -> httpx.Client:
    """Proxies come from the environment, as usual. The token goes to the hub itself only (`headers_for`): httpx drops
    `Authorization` on a redirect to another host, scheme or port.
    """
    import httpx

    return httpx.Client(timeout=TIMEOUT_S, follow_redirects=True, max_redirects=MAX_REDIRECTS)


def headers_for(url: str) -> dict[str, str]:
    """Not compressed, so that sizes and ranges are those of the file."""
    headers = {"User-Agent": "outbid", "Accept-Encoding": "identity"}
    mine, hub = urlsplit(url), urlsplit(hub_url())
    token = os.environ.get("HF_TOKEN", "").strip()
    if token and (mine.scheme, mine.netloc) == (hub.scheme, hub.netloc):
        headers["Authorization"] = f"Bearer {token}"
    return headers


@contextlib.contextmanager
def opened(http: httpx.Client, url: str, start: int = 0, end: int = 0) -> Iterator[httpx.Response]:
    """The answer to a GET, of the bytes from `start` up to `end` if that is given. Raises Again or PullFailed, whose
    sentence says what to do.
    """
    import httpx

    headers = headers_for(url)
    if end:
        headers["Range"] = f"bytes={start}-{end - 1}"
    try:
        with http.stream("GET", url, headers=headers) as response:
            _check(response, url)
            yield response
    except (httpx.TransportError, httpx.StreamError) as error:
        raise Again(f"{host_of(url)}: {error or type(error).__name__}") from error
    except (httpx.InvalidURL, httpx.TooManyRedirects) as error:
        raise PullFailed(f"{url} cannot be fetched: {error}") from error


def get(http: httpx.Client, url: str, what: str) -> bytes:
    """A small answer. Raises Again or PullFailed."""
    with opened(http, url) as response:
        data = bytearray()
        for chunk in response.iter_raw():
            data += chunk
            if len(data) > MAX_ANSWER_BYTES:
                raise PullFailed(f"{what} has more than {MAX_ANSWER_BYTES // 2**20} MiB; that is not what it should be")
        return bytes(data)


def host_of(url: str) -> str:
    return urlsplit(url).netloc or url


def _check(response: Any, url: str) -> None:
    status, host = response.status_code, host_of(url)
    if status in (200, 206):
        return
    if status in (408, 425, 429) or status >= 500:
        raise Again(f"{host} answered {status}", _after_s(response.headers.get("Retry-After", "")))
    token = "the token in HF_TOKEN does not do" if os.environ.get("HF_TOKEN") else "set HF_TOKEN for the daemon"
    if status in (401, 403):
        raise PullFailed(
            f"{host} does not give it away freely ({status}): accept its conditions on its page in a browser, and make "
            f"sure the address is right; {token}",
            status=status,
        )
    raise PullFailed(f"{host} answered {status} to {urlsplit(url).path}", status=status)


def _after_s(text: str) -> float:
    return min(60.0, float(text)) if text.isdecimal() else 0.0
