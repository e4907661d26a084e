"""Stop strings never leak, characters are never torn, whatever the pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outbid_capabilities.llm.text import StopHolder, Utf8Assembler

TEXTS = st.text(alphabet="abcSTOP ", max_size=40)
STOPS = st.lists(st.text(alphabet="abcSTOP ", min_size=1, max_size=5), max_size=3)


def pieces(text: str, sizes: list[int]) -> list[str]:
    """The text cut into pieces of these sizes, over and over."""
    found: list[str] = []
    at = 0
    while at < len(text):
        size = sizes[len(found) % len(sizes)]
        found.append(text[at : at + size])
        at += size
    return found


def first_stop(text: str, stops: list[str]) -> int:
    return min((n for n in map(text.find, stops) if n >= 0), default=len(text))


@given(TEXTS, STOPS, st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_what_goes_out_is_the_text_before_a_stop_string(text: str, stops: list[str], sizes: list[int]) -> None:
    holder = StopHolder(stops)
    out = ""
    for piece in pieces(text, sizes):
        out += holder.add(piece)
        assert not any(stop in out for stop in stops)
        if holder.found:
            break
    out += holder.end()
    assert text.startswith(out)
    if not holder.found:
        assert out == text
        assert first_stop(text, stops) == len(text)


@given(TEXTS, STOPS)
def test_one_character_at_a_time_the_first_stop_string_to_be_complete_ends_the_text(
    text: str, stops: list[str]
) -> None:
    holder = StopHolder(stops)
    out = "".join(map(holder.add, text)) + holder.end()
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert holder.found == bool(ends)
    if ends:
        done = text[: min(ends)]
        assert out == done[: first_stop(done, stops)]


def test_a_stop_string_over_three_pieces_is_found() -> None:
    holder = StopHolder(["</end>"])
    assert [holder.add(piece) for piece in ("Hi <", "/en", "d> more", "!")] == ["Hi ", "", "", ""]
    assert holder.found


def test_what_was_held_back_in_vain_comes_at_the_end() -> None:
    holder = StopHolder(["###"])
    assert holder.add("title #") == "title "
    assert holder.end() == "#"
    assert holder.end() == ""


@given(st.text(max_size=30), st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_bytes_in_any_pieces_give_the_same_characters(text: str, sizes: list[int]) -> None:
    data, assembler, found, at, n = text.encode(), Utf8Assembler(), [], 0, 0
    while at < len(data):
        found.append(assembler.add(data[at : at + sizes[n % len(sizes)]]))
        at += sizes[n % len(sizes)]
        n += 1
    assert "".join(found) + assembler.end() == text
    assert not any("\ufffd" in piece for piece in found) or "\ufffd" in text


def test_bytes_that_are_no_utf8_become_replacement_characters() -> None:
    assembler = Utf8Assembler()
    assert assembler.add(b"a\xffb\xe2\x82") == "a\ufffdb"
    assert assembler.end() == "\ufffd"
