"""`outbid tui`: the dashboard, a program of its own that is installed with the extra `tui`."""

from __future__ import annotations

import importlib.util

import click

from outbid.cli.running import become

SUMMARY = "The dashboard: machines, jobs, auctions, chat, pictures, models, history and logs, in the terminal."


@click.command(
    help=SUMMARY,
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def tui(arguments: tuple[str, ...]) -> None:
    if importlib.util.find_spec("textual") is None:
        raise click.ClickException("the dashboard is not installed; pip install 'outbid[tui]'")
    become(list(arguments), "outbid_tui")
