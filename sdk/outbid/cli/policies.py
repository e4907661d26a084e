"""The options that say by what the bids for a job are ranked: the same for every command that hands in work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click
import msgspec

from outbid.cli.running import duration
from outbid_contracts.policy import GOALS, ZONES, Policy, Weights

Command = TypeVar("Command", bound=Callable[..., Any])

GOAL_HELP = "What counts when the bids are ranked; default: as the node is configured, usually balanced."

_FIELDS = ("deadline_s", "max_cost_usd", "prefer", "avoid", "zone", "weights")
_WEIGHTS = ", ".join(Weights.__struct_fields__)


def _weights(text: str) -> Weights:
    """Of `p50=1,per_j=0.01`; what is not named is as `Weights` has it."""
    words = dict(word.partition("=")[::2] for word in text.split(","))
    strange = [name for name in words if name.strip() not in Weights.__struct_fields__]
    if strange:
        raise click.BadParameter(f"{strange[0]!r} is none of {_WEIGHTS}; write p50=0.7,p90=0.3,per_j=0.01")
    try:
        return msgspec.convert({name.strip(): value for name, value in words.items()}, Weights, strict=False)
    except msgspec.ValidationError as error:
        raise click.BadParameter(f"{error}; each is a number from 0 to 1e9") from error


_MODIFIERS = (
    click.option("--deadline", "deadline_s", type=duration, metavar="TIME", help="Fail if it is not done by then."),
    click.option(
        "--max-cost", "max_cost_usd", type=click.FloatRange(0), metavar="USD", help="Take no bid above so many dollars."
    ),
    click.option("--prefer", multiple=True, metavar="NODE", help="Put this node first if it bids (repeatable)."),
    click.option("--avoid", multiple=True, metavar="NODE", help="Take this node only if no other bids (repeatable)."),
    click.option("--zone", multiple=True, type=click.Choice(ZONES), help="Run it only there (repeatable)."),
    click.option(
        "--weights",
        type=_weights,
        metavar="NAME=NUMBER,…",
        help=f"For --policy custom: the seconds that each is worth, of {_WEIGHTS}.",
    ),
)


def options(command: Command) -> Command:
    """Add them all to a command."""
    return click.option("--policy", type=click.Choice(GOALS), help=GOAL_HELP)(modifiers(command))


def modifiers(command: Command) -> Command:
    """Add those beside the goal."""
    for option in reversed(_MODIFIERS):
        command = option(command)
    return command


def taken(given: dict[str, Any]) -> Policy:
    """The policy that the options say; they are taken out of `given`. Raises click.UsageError."""
    policy = policy_of(given)
    for name in ("policy", *_FIELDS):
        given.pop(name)
    return policy


def policy_of(given: Mapping[str, Any], goal: str | None = None) -> Policy:
    """With the `goal` named, or that of --policy. Raises click.UsageError."""
    goal = goal or given.get("policy")
    if given["weights"] is not None and goal not in (None, "custom"):
        raise click.UsageError(f"--weights are for --policy custom, not for {goal}")
    goal = "custom" if given["weights"] is not None else goal
    return Policy(goal=goal, **{name: given[name] for name in _FIELDS})  # type: ignore[arg-type]


def told(policy: Policy) -> Sequence[str]:
    """As people read it: `goal green`, `deadline 30 s` …"""
    found = [f"goal {policy.goal or 'balanced'}"]
    found += [f"deadline {policy.deadline_s:g} s"] if policy.deadline_s is not None else []
    found += [f"at most ${policy.max_cost_usd:g}"] if policy.max_cost_usd is not None else []
    found += [f"{word} {', '.join(names)}" for word in ("prefer", "avoid", "zone") if (names := getattr(policy, word))]
    return found
