"""The Hugging Face hub: what a repository has, under which licence, and with which hashes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from outbid_contracts.errors import PullFailed
from outbid_node.files.choosing import INDEX, choose
from outbid_node.files.http import get, hub_url
from outbid_node.files.plan import Listed, Listing, Plan, PlannedFile
from outbid_node.files.source import Hub

if TYPE_CHECKING:
    import httpx

_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{7,64}")


def plan(http: httpx.Client, source: Hub, variant: str = "") -> Plan:
    """Raises InvalidRequest, PullFailed, or Again."""
    listing = _listing(http, source)
    kind, chosen = choose(listing, source.file, variant)
    return Plan(
        source=str(source),
        kind=kind,
        revision=listing.revision,
        licence=listing.licence,
        files=tuple(
            PlannedFile(
                path=it.path.removeprefix(folder_of(source)),
                size=it.size if it.size is not None else -1,
                sha256=it.sha256,
                git=it.git,
                url=url_of(source.repo, listing.revision, it.path),
            )
            for it in chosen
        ),
    )


def folder_of(source: Hub) -> str:
    """What the paths in the repository begin with and those of the model do not: a single file lies at the top."""
    folder, slash, _ = source.file.rpartition("/")
    return folder + slash


def _listing(http: httpx.Client, source: Hub) -> Listing:
    """`blobs=true` adds sizes and hashes of the files (hub API, `/api/models/{repo}/revision/{revision}`)."""
    revision = quote(source.revision or "main", safe="")
    url = f"{hub_url()}/api/models/{source.repo}/revision/{revision}?blobs=true"
    try:
        answer: Any = json.loads(get(http, url, "the list of files"))
        files = [_listed(it) for it in answer["siblings"]]
        commit = str(answer.get("sha", ""))
    except PullFailed as error:
        if error.detail.get("status") == 404:
            raise PullFailed(f"the hub has no model {Hub(source.repo, source.revision)}") from error
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PullFailed(f"the hub's list of files of {source.repo} cannot be read: {error}") from error
    if _COMMIT.fullmatch(commit) is None:
        raise PullFailed(f"the hub does not say which revision of {source.repo} this is")
    texts = {}
    if not source.file and any(it.path == INDEX for it in files):
        texts[INDEX] = get(http, url_of(source.repo, commit, INDEX), INDEX)
    return Listing(str(source), files, texts, commit, _licence(answer))


def _listed(sibling: Any) -> Listed:
    lfs = sibling.get("lfs") or {}
    sha256, git = str(lfs.get("sha256", "")), "" if lfs else str(sibling.get("blobId", ""))
    size = lfs.get("size", sibling.get("size"))
    return Listed(
        path=str(sibling["rfilename"]),
        size=int(size) if size is not None else None,
        sha256=sha256 if _SHA256.fullmatch(sha256) else "",
        git=git if re.fullmatch(r"[0-9a-f]{40}", git) else "",
    )


def _licence(answer: Any) -> str:
    """From the card's front matter, as the hub has read it: `license`, and the name where that is `other`."""
    card = answer.get("cardData")
    card = card if isinstance(card, dict) else {}
    licence = card.get("license") or next(
        (tag.partition(":")[2] for tag in answer.get("tags") or () if str(tag).startswith("license:")), ""
    )
    if isinstance(licence, list):
        licence = ", ".join(map(str, licence))
    name = card.get("license_name")
    text = f"{name}" if licence == "other" and name else str(licence or "")
    return "".join(sign for sign in text if sign.isprintable())[:200]


def url_of(repo: str, revision: str, path: str) -> str:
    return f"{hub_url()}/{repo}/resolve/{revision}/{quote(path)}"
