"""This node's jobs that have not ended, wherever they are: waiting, driven, or with an end on its way to disk."""

from __future__ import annotations

from outbid_contracts.codec import encode
from outbid_contracts.ids import JobId
from outbid_node.durable.book import Book
from outbid_node.durable.records import record_of


def live(book: Book) -> list[JobId]:
    driven = [id for id, owned in book.owner.running.items() if owned.recorder is not None]
    return [*book.parked, *driven, *book.ending]


def data(book: Book, id: JobId) -> bytes | None:
    """The encoded record as it stands now; None once the job is over, or not this node's."""
    if id in book.parked:
        return book.parked[id].data
    owned = book.owner.running.get(id)
    return encode(record_of(owned)) if owned is not None and owned.recorder is not None else None
