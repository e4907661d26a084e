"""`outbid tui`: the dashboard in this terminal."""

from __future__ import annotations

import errno

import click

from outbid import Mesh
from outbid_tui.app import Dashboard
from outbid_tui.memory import settle
from outbid_tui.screens import SCREENS
from outbid_tui.studio.graphics import ask_terminal


@click.command("outbid tui")
@click.option("--url", help="Another node, e.g. nats://studio.local:4222; default: the one of this machine.")
@click.option("--creds", type=click.Path(exists=True, dir_okay=False), help="Credentials file for it.")
@click.option("--state", metavar="DIR", envvar="OUTBID_STATE", help="State folder of the local node (OUTBID_STATE).")
@click.option("--screen", type=click.Choice([name for name, _ in SCREENS]), default="mesh", help="The first one.")
@click.option("--web", is_flag=True, help="Serve it to browsers instead, and print the address.")
@click.option("--host", default="127.0.0.1", show_default=True, help="With --web: where to listen.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="With --web; 0: a free one."
)
@click.option("--public-url", metavar="URL", help="With --web: how browsers reach it through a proxy.")
def main(
    url: str | None,
    creds: str | None,
    state: str | None,
    screen: str,
    web: bool,
    host: str,
    port: int,
    public_url: str | None,
) -> None:
    """The dashboard: machines, jobs, auctions, chat, pictures, models, history, logs."""
    if web:
        given = {"--url": url, "--creds": creds, "--state": state, "--screen": screen}
        _serve([word for name, value in given.items() if value for word in (name, value)], host, port, public_url)
        return
    settle()
    Dashboard(Mesh(url, creds=creds, state=state), start_on=screen, graphics=ask_terminal()).run()


def _serve(arguments: list[str], host: str, port: int, public_url: str | None) -> None:
    from outbid_tui.browser.server import DashboardServer

    try:
        DashboardServer(arguments, host=host, port=port, public_url=public_url).serve()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise click.ClickException(f"port {port} is taken; choose another with --port, or --port 0") from error
        raise click.ClickException(f"cannot listen on {host}: {error.strerror or error}") from error


if __name__ == "__main__":
    main(prog_name="outbid tui")
