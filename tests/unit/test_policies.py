"""What callers say they want: read at the door, filled in by the owner, the same options for every command."""

from __future__ import annotations

import re
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from outbid.cli import policies as options
from outbid.cli.main import cli
from outbid_contracts.codec import decode, encode
from outbid_contracts.errors import InvalidRequest
from outbid_contracts.policy import GOALS, Policy, Weights
from outbid_contracts.requests import parse_policy
from outbid_node.config_sections import PolicySection
from outbid_node.policies import Policies
from tests.unit.strategies import instances

# -- at the door -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("speedy", "policy.goal: .*goals are fastest, balanced, green, cheap, private, custom"),
        ({"goal": "greenest"}, "policy.goal: "),
        ({"deadline_s": 0}, r"policy.deadline_s: .*> 0"),
        ({"max_cost_usd": -1}, r"policy.max_cost_usd: .*>= 0"),
        ({"prefer": "pi"}, r"policy.prefer: Expected `array`"),
        ({"avoid": ["pi", 3]}, r"policy.avoid\[1\]: "),
        ({"zone": ["moon"]}, r"policy.zone\[0\]: .*zones are here, lan, wan, cloud"),
        ({"weights": {"per_j": -1}}, r"policy.weights.per_j: .*>= 0"),
        ({"goal": "green", "weights": {"per_j": 1}}, "policy.weights: they are for goal custom, not for green"),
        ({"gaol": "green"}, "policy has no field `gaol`; known are goal, deadline_s"),
        (7, "policy: Expected `object`"),
    ],
)
def test_a_bad_policy_is_refused_with_its_field(value: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{said}"):
        parse_policy(value)


@given(st.floats(allow_nan=True, allow_infinity=True), st.sampled_from(["deadline_s", "max_cost_usd"]))
def test_whatever_number_comes_what_is_taken_can_be_ranked_by(number: float, field: str) -> None:
    try:
        policy = decode(encode({"policy": {field: number}}), dict[str, Policy])["policy"]
    except InvalidRequest:
        return
    value = getattr(policy, field)
    assert 0 <= value <= 1e9


def test_weights_alone_mean_goal_custom() -> None:
    assert parse_policy({"weights": {"per_j": 2}}) == Policy(goal="custom", weights=Weights(per_j=2))


@given(instances(Policy))
def test_a_policy_survives_the_wire_and_leaves_open_what_it_left_open(policy: Policy) -> None:
    assert decode(encode(policy), Policy) == policy
    assert set(msgspec.to_builtins(policy)) == {
        field.name for field in msgspec.structs.fields(Policy) if getattr(policy, field.name) != field.default
    }


# -- at the owner ------------------------------------------------------------------------------------------------------


def test_the_owner_names_the_goal_of_jobs_that_name_none() -> None:
    green = Policies(PolicySection(default="green"))
    assert Policies().settled(Policy()).goal == "balanced"
    assert green.settled(Policy()) == Policy(goal="green")
    assert green.settled(Policy(prefer=("pi",))) == Policy(goal="green", prefer=("pi",))
    assert green.settled(Policy(goal="balanced")) == Policy(goal="balanced"), "said is said"


def test_goal_custom_without_weights_has_those_of_the_owner() -> None:
    owner = Policies(PolicySection(p50=1.0, p90=0.0, per_j=0.25, per_usd=7.0))
    assert owner.settled(Policy(goal="custom")).weights == Weights(p50=1.0, per_j=0.25, per_usd=7.0)
    own = Policy(goal="custom", weights=Weights(per_j=3))
    assert owner.settled(own) == own
    assert Policies(PolicySection(default="custom")).settled(Policy(weights=own.weights)) == own
    assert Policies(PolicySection(default="custom", per_j=0.5)).settled(Policy()).weights == Weights(
        p50=0.7, p90=0.3, per_j=0.5, per_usd=1000.0
    )


@given(instances(Policy))
def test_a_settled_policy_has_a_goal_and_stays_as_it_is(policy: Policy) -> None:
    settled = Policies().settled(policy)
    assert settled.goal in GOALS
    assert (settled.goal == "custom") <= (settled.weights is not None)
    assert Policies().settled(settled) == settled


# -- on the command line -----------------------------------------------------------------------------------------------

WITH_POLICIES = ("chat", "image", "submit", "what-if")
NAMES = ("--policy", "--deadline", "--max-cost", "--prefer", "--avoid", "--zone", "--weights")


def test_every_command_that_hands_in_work_has_the_same_options_with_the_same_words() -> None:
    helps = [
        {name: parameter.help for parameter in cli.commands[command].params for name in parameter.opts if name in NAMES}
        for command in WITH_POLICIES
    ]
    assert all(set(found) == set(NAMES) for found in helps)
    for found in helps[1:]:
        assert {name: text for name, text in found.items() if name != "--policy"} == {
            name: text for name, text in helps[0].items() if name != "--policy"
        }


def _parsed(*words: str) -> Policy:
    found: list[Policy] = []

    @click.command()
    @options.options
    def command(**given: Any) -> None:
        found.append(options.taken(given))
        assert not given

    done = CliRunner().invoke(command, words, catch_exceptions=False)
    if done.exit_code:
        raise click.UsageError(done.output)
    return found[0]


def test_options_make_the_policy_that_they_say() -> None:
    assert _parsed() == Policy()
    assert _parsed("--policy", "green", "--deadline", "2m", "--max-cost", "0.5", "--zone", "lan", "--avoid", "pi") == (
        Policy(goal="green", deadline_s=120.0, max_cost_usd=0.5, zone=("lan",), avoid=("pi",))
    )
    assert _parsed("--weights", "p50=2, per_j=0.01") == Policy(goal="custom", weights=Weights(p50=2, per_j=0.01))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--weights", "p59=1"), "'p59' is none of p50, p90, per_j, per_usd"),
        (("--weights", "p50=much"), "--weights"),
        (("--weights", "p50=-1"), ">= 0"),
        (("--weights", "p50=1", "--policy", "cheap"), "not for cheap"),
        (("--max-cost", "-1"), "--max-cost"),
        (("--zone", "moon"), "--zone"),
    ],
)
def test_what_makes_no_policy_is_refused_with_the_option(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(click.UsageError, match=re.escape(said)):
        _parsed(*words)
