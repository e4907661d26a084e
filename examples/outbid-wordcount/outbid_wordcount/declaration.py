import msgspec

from outbid_contracts.capability import Capability


class Params(msgspec.Struct):
    text: str


class Result(msgspec.Struct):
    words: int
    longest: str


class Settings(msgspec.Struct):
    python: str | None = None


count = Capability(
    name="words.count",
    summary="Counts the words of a text",
    params=Params,
    result=Result,
    settings=Settings,
    text_field="text",
    runner="outbid_wordcount.runner:Counter",
    work=lambda params: {"characters": float(len(params.text))},
)
