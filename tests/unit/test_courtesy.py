"""The laws of courtesy, rule by rule: what follows from made-up readings, with a clock that the test moves."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbid_contracts.errors import InvalidConfig
from outbid_contracts.messages import Gpu, Resources
from outbid_node.config import load
from outbid_node.config_sections import CourtesySection
from outbid_node.courtesy import pausing, quieting
from outbid_node.courtesy.charge import BAND_PERCENT, MARGIN, Charge, Unplugged, until_floor_s
from outbid_node.courtesy.heat import BAND_C, SUSTAINED_S, Heat
from outbid_node.courtesy.hours import Calendar, parse
from outbid_node.courtesy.keyboard import Keyboard
from outbid_node.courtesy.parts import Part, strictest
from outbid_node.courtesy.pausing import Paused
from outbid_node.courtesy.playing import SUSTAINED_S as BUSY_S
from outbid_node.courtesy.playing import Games, GpuTaken
from outbid_node.courtesy.quiet import QuietHours
from outbid_node.courtesy.readings import GpuUse, Pause, Readings
from outbid_node.courtesy.rules import rules
from outbid_node.terms import USUAL, Terms

USUALLY = CourtesySection()
BERLIN = ZoneInfo("Europe/Berlin")


def reading(at: float = 0.0, clock_s: float = 0.0, **what: object) -> Readings:
    return Readings(at=at, clock_s=clock_s, **what)  # type: ignore[arg-type]


def unix(text: str, zone: ZoneInfo = BERLIN, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).timestamp()


# -- all together -----------------------------------------------------------------------------------------------------


def test_a_machine_about_which_nothing_is_known_works_as_usual() -> None:
    for own in (True, False):
        assert strictest([rule.judge(reading()) for rule in rules(USUALLY)], own=own) == USUAL


parts = st.builds(
    Part,
    said=st.sampled_from(["a", "b", "c"]),
    refuse=st.booleans(),
    passes=st.booleans(),
    slower=st.floats(1, 10),
    most_s=st.none() | st.floats(0, 1e6),
    binds_own=st.booleans(),
)


@given(st.lists(parts, max_size=5), parts, st.booleans())
def test_one_more_rule_never_makes_the_terms_milder(some: list[Part], more: Part, own: bool) -> None:
    before, after = strictest(some, own=own), strictest([*some, more], own=own)
    assert after.refuse or not before.refuse
    assert after.slower >= before.slower
    assert before.most_s is None or (after.most_s is not None and after.most_s <= before.most_s)
    assert before.passes or not after.passes


@given(st.lists(parts, max_size=5))
def test_the_jobs_of_this_machines_person_are_never_held_back_more_than_others(some: list[Part]) -> None:
    own, others = strictest(some, own=True), strictest(some, own=False)
    assert others.refuse or not own.refuse
    assert others.slower >= own.slower
    assert own.most_s is None or (others.most_s is not None and others.most_s <= own.most_s)


def test_only_heat_and_charge_hold_back_what_the_person_asks_for_himself() -> None:
    section = CourtesySection(quiet_hours=("00:00-24:00",), when_in_use="withdraw", on_battery="never")
    busy = reading(
        idle_s=0.0,
        games=("cs2",),
        pause=Pause(),
        resources=Resources(on_battery=True, battery_percent=80.0, battery_left_s=7200.0, battery_w=10.0),
    )
    said = [rule.judge(busy) for rule in rules(section, BERLIN)]
    for_others, for_own = strictest(said, own=False), strictest(said, own=True)
    for reason in ("plays (cs2)", "paused", "keyboard", "quiet hours", "on battery"):
        assert reason in for_others.refuse
    assert not for_own.refuse
    assert for_own.most_s == pytest.approx(MARGIN * 7200 * 50 / 80), "its charge must still do"


def test_switched_off_it_says_nothing_but_that_the_person_paused_it() -> None:
    off = rules(CourtesySection(enabled=False, quiet_hours=("00:00-24:00",)))
    busy = reading(idle_s=0.0, games=("cs2",), resources=Resources(on_battery=True, battery_percent=1.0))
    assert strictest([rule.judge(busy) for rule in off], own=False) == USUAL
    assert strictest([rule.judge(reading(pause=Pause())) for rule in off], own=False).refuse


def test_quiet_hours_by_order_go_before_those_of_the_configuration_and_hold_where_courtesy_is_off() -> None:
    night, noon = reading(clock_s=unix("2026-11-20 23:00")), reading(clock_s=unix("2026-11-20 12:00"))
    for enabled in (True, False):
        rule = QuietHours(CourtesySection(enabled=enabled, quiet_hours=("22:00-07:00",)), BERLIN)
        assert rule.judge(night).refuse == enabled
        rule.hold(("11:00-13:00",))
        assert (rule.judge(night).refuse, rule.judge(noon).refuse) == (False, True)
        with pytest.raises(ValueError, match="late"):
            rule.hold(("late",))
        assert rule.hours == ("11:00-13:00",)
        assert rule.judge(noon).refuse
        rule.hold(())
        assert not rule.judge(noon).refuse
        rule.hold(None)
        assert rule.judge(night).refuse == enabled


def test_ordered_quiet_hours_are_there_after_a_restart_and_nonsense_is_no_order(tmp_path: Path) -> None:
    rule = QuietHours(CourtesySection(quiet_hours=("22:00-07:00",)), BERLIN)
    quieting.save(tmp_path, ("Sat-Sun 00:00-09:00",))
    quieting.take_up(tmp_path, rule)
    assert rule.hours == ("Sat-Sun 00:00-09:00",)
    for text in ("", "[]", '{"hours": 7}', '{"hours": ["late"]}', "\x00"):
        (tmp_path / quieting.FILE).write_text(text)
        rule.hold(None)
        quieting.take_up(tmp_path, rule)
        assert rule.hours == ("22:00-07:00",)
    quieting.save(tmp_path, None)
    quieting.save(tmp_path, None)
    assert not (tmp_path / quieting.FILE).exists()


# -- the person -------------------------------------------------------------------------------------------------------


def test_at_the_keyboard_times_grow_until_nobody_was_there_for_long_enough() -> None:
    rule = Keyboard(CourtesySection(lower_by=3.0, back_after_s=120.0))
    assert rule.judge(reading(idle_s=0.0)).slower == 3.0
    assert not rule.judge(reading(idle_s=0.0)).refuse
    assert rule.judge(reading(idle_s=119.0)).slower == 3.0
    assert rule.judge(reading(idle_s=120.0)) == Part()
    assert rule.judge(reading(idle_s=None)) == Part(), "a server has no person"


@pytest.mark.parametrize(
    ("how", "refuse", "slower"), [("withdraw", True, 1.0), ("lower", False, 2.0), ("ignore", False, 1.0)]
)
def test_what_a_person_does_to_the_bids_is_the_persons_choice(how: str, refuse: bool, slower: float) -> None:
    section = msgspec.convert({"when_in_use": how, "when_playing": how}, CourtesySection)
    here = (Keyboard(section).judge(reading(idle_s=1.0)), Games(section).judge(reading(games=("cs2",))))
    assert [(part.refuse, part.slower) for part in here] == [(refuse, slower)] * 2


def test_a_game_withdraws_at_once_frees_memory_and_its_end_is_believed_after_a_while() -> None:
    rule = Games(CourtesySection(back_after_s=300.0))
    playing = rule.judge(reading(10.0, games=("cs2",)))
    assert (playing.refuse, playing.gives_back, playing.frees_memory) == (True, True, True)
    assert "cs2" in playing.said
    assert rule.judge(reading(11.0)).refuse, "it may only be starting again"
    rule.judge(reading(200.0, games=("cs2",)))
    assert rule.judge(reading(499.0)).refuse
    assert rule.judge(reading(500.0)) == Part()


def test_hand_over_false_leaves_running_jobs_alone() -> None:
    assert not Games(CourtesySection(hand_over=False)).judge(reading(games=("cs2",))).gives_back


def test_another_program_on_the_graphics_processor_counts_once_it_lasts() -> None:
    rule = GpuTaken(CourtesySection(back_after_s=60.0))
    render = (GpuUse("blender", busy_percent=90.0),)
    assert rule.judge(reading(0.0, gpu_use=render)) == Part(), "a page that is drawn anew"
    assert rule.judge(reading(1.0)) == Part()
    for at in range(5, 5 + int(BUSY_S)):
        assert not rule.judge(reading(float(at), gpu_use=render)).refuse
    assert "blender" in rule.judge(reading(5.0 + BUSY_S, gpu_use=render)).said
    assert rule.judge(reading(30.0)).refuse
    assert rule.judge(reading(5.0 + BUSY_S + 60.0)) == Part()


@pytest.mark.parametrize(
    ("use", "counts"),
    [
        (GpuUse("gnome-shell", busy_percent=4.0, memory_percent=3.0), False),
        (GpuUse("ollama", busy_percent=0.0, memory_percent=70.0), True),
        (GpuUse("game", busy_percent=31.0, memory_percent=None), True),
        (GpuUse("unknown", busy_percent=None, memory_percent=None), False),
    ],
)
def test_a_desktop_is_no_load_and_memory_counts_as_well(use: GpuUse, counts: bool) -> None:
    rule = GpuTaken(USUALLY)
    rule.judge(reading(0.0, gpu_use=(use,)))
    assert rule.judge(reading(BUSY_S, gpu_use=(use,))).refuse is counts


@given(st.lists(st.booleans(), min_size=2, max_size=60), st.floats(2, 30))
def test_a_game_that_comes_and_goes_within_the_time_of_return_never_brings_the_node_back(
    seen: Sequence[bool], back_s: float
) -> None:
    rule = Games(CourtesySection(back_after_s=back_s))
    last = None
    for second, there in enumerate(seen):
        last = second if there else last
        part = rule.judge(reading(float(second), games=("g",) if there else ()))
        assert part.refuse is (last is not None and (there or second - last < back_s))


# -- quiet hours ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        (
            "22:00-07:00",
            ["2026-11-21T22:00", "2026-11-22T06:59", "2026-11-23T00:00"],
            ["2026-11-21T21:59", "2026-11-22T07:00"],
        ),
        ("13:00-14:00", ["2026-11-21T13:00", "2026-11-21T13:59"], ["2026-11-21T12:59", "2026-11-21T14:00"]),
        ("Sat-Sun 00:00-09:00", ["2026-11-21T00:00", "2026-11-22T08:59"], ["2026-11-20T08:00", "2026-11-23T08:00"]),
        ("Fri 22:00-07:00", ["2026-11-20T22:00", "2026-11-21T06:59"], ["2026-11-20T06:00", "2026-11-21T22:00"]),
        ("Sat-Mon 20:00-24:00", ["2026-11-23T23:59", "2026-11-21T20:00"], ["2026-11-24T00:00", "2026-11-24T20:00"]),
        ("Sun 23:00-01:00", ["2026-11-23T00:30"], ["2026-11-22T00:30"]),
    ],
)
def test_quiet_hours_hold_over_midnight_and_on_their_days_only(
    text: str, inside: list[str], outside: list[str]
) -> None:
    calendar = Calendar([text], BERLIN)
    assert [calendar.quiet(unix(at)) for at in inside] == [True] * len(inside)
    assert [calendar.quiet(unix(at)) for at in outside] == [False] * len(outside)


@pytest.mark.parametrize(
    "text",
    ["", "22-7", "22:00", "25:00-07:00", "22:60-23:00", "10:00-10:00", "24:00-06:00", "Sax 10:00-11:00", "22:00–07:00"],
)
def test_quiet_hours_that_are_none_are_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(ValueError, match=r"22:00-07:00|00:00-24:00|Mon, Tue"):
        parse(text)


def test_the_node_does_not_start_with_quiet_hours_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"10pm-7am.*22:00-07:00"):
        load(tmp_path, None, {"OUTBID_COURTESY_QUIET_HOURS": "22:00-07:00, 10pm-7am"}, {}, {})


def test_before_quiet_hours_only_what_ends_in_time_and_in_them_nothing() -> None:
    rule = QuietHours(CourtesySection(quiet_hours=("22:00-07:00",)), BERLIN)
    ten_before = rule.judge(reading(clock_s=unix("2026-11-21T21:50:15")))
    assert (ten_before.refuse, ten_before.most_s) == (False, 9 * 60 + 45)
    assert "22:00" in ten_before.most_why
    night = rule.judge(reading(clock_s=unix("2026-11-22T03:00")))
    assert night.refuse
    assert night.said == "quiet hours until 07:00"
    assert not rule.judge(reading(clock_s=unix("2026-11-22T07:00"))).refuse


def test_spans_that_meet_are_one_quiet_time() -> None:
    rule = QuietHours(CourtesySection(quiet_hours=("22:00-24:00", "00:00-07:00")), BERLIN)
    assert rule.judge(reading(clock_s=unix("2026-11-21T23:00"))).said == "quiet hours until 07:00"


def test_always_quiet_has_no_end_to_tell() -> None:
    rule = QuietHours(CourtesySection(quiet_hours=("00:00-24:00",)), BERLIN)
    assert rule.judge(reading(clock_s=unix("2026-11-21T23:00"))).said == "quiet hours"


@pytest.mark.parametrize(
    ("now", "begins_in_h"),
    [("2026-03-28T20:00", 6.0), ("2026-03-29T00:30", 1.5), ("2026-10-24T20:00", 6.5), ("2026-10-25T00:30", 2.0)],
)
def test_the_hour_that_summer_time_takes_or_gives_counts(now: str, begins_in_h: float) -> None:
    """In the night to 29 March 02:00 to 03:00 does not exist; in the one to 25 October it comes twice."""
    rule = QuietHours(CourtesySection(quiet_hours=("02:30-07:00",)), BERLIN)
    assert rule.judge(reading(clock_s=unix(now))).most_s == begins_in_h * 3600


@given(
    st.integers(int(unix("2026-01-01T00:00")), int(unix("2027-01-01T00:00"))),
    st.lists(
        st.builds(
            lambda day, begin, length: (
                f"{day} {begin // 60:02}:{begin % 60:02}-{(begin + length) % 1440 // 60:02}:{(begin + length) % 60:02}"
            ),
            st.sampled_from(["Mon", "Tue-Thu", "Fri-Mon", "Sat-Sun"]),
            st.integers(0, 1439),
            st.integers(1, 1439),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_no_job_that_was_bid_for_runs_into_quiet_hours_whatever_the_night(clock_s: int, texts: list[str]) -> None:
    calendar = Calendar(texts, BERLIN)
    part = QuietHours(CourtesySection(quiet_hours=tuple(texts)), BERLIN).judge(reading(clock_s=float(clock_s)))
    assert part.refuse is calendar.quiet(clock_s)
    if not part.refuse:
        most_s = part.most_s if part.most_s is not None else timedelta(days=1).total_seconds()
        assert not any(calendar.quiet(clock_s + share * (most_s - 1)) for share in (0.0, 0.3, 0.5, 0.9, 1.0))
        assert part.most_s is None or calendar.quiet(clock_s + most_s)


# -- heat -------------------------------------------------------------------------------------------------------------


def hot(celsius: float, at: float, critical: float | None = 100.0, chip: str = "coretemp") -> Readings:
    known = {} if critical is None else {chip: critical}
    return reading(at, resources=Resources(temperatures_c={chip: celsius}), critical_c=known)


def test_a_processor_ten_degrees_below_critical_takes_no_more_until_it_is_five_cooler() -> None:
    rule = Heat(USUALLY)
    assert not rule.judge(hot(90.0, 0.0)).refuse, "a moment of full clock"
    part = rule.judge(hot(90.0, SUSTAINED_S))
    assert (part.refuse, part.passes, part.binds_own) == (True, True, True)
    assert rule.judge(hot(85.5, SUSTAINED_S + 1)).refuse
    assert rule.judge(hot(84.9, SUSTAINED_S + 2)) == Part()
    assert not rule.judge(hot(89.9, SUSTAINED_S + 3)).refuse


@given(st.lists(st.floats(-BAND_C + 0.01, -0.01), min_size=1, max_size=50), st.booleans())
def test_within_the_band_the_rule_never_changes_its_mind(offsets: list[float], was_hot: bool) -> None:
    rule = Heat(CourtesySection(max_cpu_c=80.0))
    start = 80.5 if was_hot else 60.0
    rule.judge(hot(start, 0.0))
    rule.judge(hot(start, SUSTAINED_S))
    for second, offset in enumerate(offsets):
        assert rule.judge(hot(80.0 + offset, SUSTAINED_S + 1 + second)).refuse is was_hot


def test_the_nearer_to_the_limit_the_slower() -> None:
    rule = Heat(CourtesySection(max_cpu_c=80.0))
    factors = [rule.judge(hot(celsius, 0.0)).slower for celsius in (70.0, 75.0, 76.0, 78.0, 79.9)]
    assert factors == sorted(factors)
    assert factors[1] == 1.0
    assert factors[-1] == pytest.approx(1.5, abs=0.02)


def test_a_chip_that_names_no_critical_temperature_has_no_limit_and_a_disk_never_has() -> None:
    for heat in (hot(120.0, 0.0, critical=None), hot(84.0, 0.0, critical=84.0, chip="nvme")):
        rule = Heat(USUALLY)
        rule.judge(heat)
        assert rule.judge(dataclasses.replace(heat, at=SUSTAINED_S)) == Part()


def test_a_hot_graphics_processor_withdraws_and_one_that_tells_nothing_does_not() -> None:
    rule = Heat(USUALLY)
    cards = (Gpu(name="quiet", vendor="amd"), Gpu(name="hot", vendor="nvidia", temperature_c=88.0))
    for at in (0.0, SUSTAINED_S):
        part = rule.judge(reading(at, resources=Resources(gpus=cards)))
    assert part.refuse
    assert "graphics processor 1 is at 88 °C" in part.said


# -- battery ----------------------------------------------------------------------------------------------------------


def battery(percent: float, **more: object) -> Resources:
    known = {"on_battery": True, "battery_left_s": percent / 100 * 4 * 3600, "battery_w": 10.0} | more
    return Resources(battery_percent=percent, **known)  # type: ignore[arg-type]


@given(st.floats(1, 100), st.floats(0, 99), st.floats(0.1, 100), st.floats(0, 200))
def test_a_job_of_the_longest_time_leaves_the_floor_untouched(
    percent: float, floor: float, watts: float, extra_w: float
) -> None:
    """Simulated: a battery of 40 Wh that is drained at what is drawn now and what the job draws."""
    full_wh = 40.0
    left_s = full_wh * percent / 100 / watts * 3600
    section = CourtesySection(battery_floor_percent=floor)
    resources = battery(percent, battery_left_s=left_s, battery_w=watts)
    part = Charge(section).judge(reading(resources=resources, extra_w=extra_w))
    if percent <= floor:
        assert part.refuse
        return
    assert part.most_s is not None
    used_percent = 100 * part.most_s * (watts + extra_w) / 3600 / full_wh
    assert percent - used_percent >= floor + (percent - floor) * (1 - MARGIN) - 1e-6


def test_what_runs_is_in_the_draw_already() -> None:
    idle = Charge(USUALLY).judge(reading(resources=battery(60.0), extra_w=10.0))
    busy = Charge(USUALLY).judge(reading(resources=battery(60.0), extra_w=10.0, running=1))
    assert idle.most_s == pytest.approx((busy.most_s or 0.0) / 2)


def test_at_the_floor_it_withdraws_and_comes_back_well_above_it_only() -> None:
    rule = Charge(CourtesySection(battery_floor_percent=30.0))
    assert not rule.judge(reading(resources=battery(30.1))).refuse
    at_floor = rule.judge(reading(resources=battery(30.0)))
    assert (at_floor.refuse, at_floor.binds_own, at_floor.gives_back) == (True, True, True)
    dice = random.Random(7)
    for _ in range(200):
        assert rule.judge(reading(resources=battery(30.0 + dice.uniform(-2, BAND_PERCENT)))).refuse
    assert not rule.judge(reading(resources=battery(30.0 + BAND_PERCENT + 0.1))).refuse
    rule.judge(reading(resources=battery(20.0)))
    assert rule.judge(reading(resources=battery(20.0, on_battery=False))) == Part(), "the plug is in"


def test_a_battery_that_tells_only_percent_is_not_trusted_with_much() -> None:
    assert until_floor_s(battery(80.0, battery_left_s=None, battery_w=None), 30.0, 50.0) == 1800.0
    assert until_floor_s(battery(80.0, battery_w=None, battery_left_s=36_000.0), 30.0, 50.0) == 1800.0


def test_on_battery_never_is_towards_the_others_and_ignore_is_nothing() -> None:
    resources = battery(90.0)
    assert Unplugged(CourtesySection(on_battery="never")).judge(reading(resources=resources)).refuse
    assert not Unplugged(CourtesySection(on_battery="never")).judge(reading(resources=resources)).binds_own
    assert Charge(CourtesySection(on_battery="ignore")).judge(reading(resources=battery(1.0))) == Part()
    assert Charge(USUALLY).judge(reading(resources=Resources())) == Part()


# -- pause ------------------------------------------------------------------------------------------------------------


def test_a_pause_outlives_a_restart_and_ends_in_time(tmp_path: Path) -> None:
    pausing.save(tmp_path, Pause(1000.0))
    pause = pausing.load(tmp_path)
    assert pause == Pause(1000.0)
    assert Paused().judge(reading(clock_s=999.0, pause=pause)).refuse
    assert Paused().judge(reading(clock_s=1000.0, pause=pause)) == Part()
    pausing.save(tmp_path, None)
    pausing.save(tmp_path, None)
    assert pausing.load(tmp_path) is None


@pytest.mark.parametrize("garbage", ["", "[]", "{}", '{"until_s": "x"}', '{"until_s": NaN}', "\x00"])
def test_a_pause_that_cannot_be_read_is_one_without_end(tmp_path: Path, garbage: str) -> None:
    (tmp_path / pausing.FILE).write_text(garbage)
    assert pausing.load(tmp_path) == Pause(None)
    assert "outbid resume" in Paused().judge(reading(pause=Pause(None))).said


def test_a_pause_until_the_end_of_time_is_still_told() -> None:
    assert Paused().judge(reading(pause=Pause(1e300))).refuse


def test_terms_of_a_lowered_machine_say_why() -> None:
    terms: Terms = strictest([Keyboard(USUALLY).judge(reading(idle_s=0.0))], own=False)
    assert (terms.refuse, terms.slower) == ("", 2.0)
    assert terms.slower_why == "its person is at the keyboard: times x 2"
