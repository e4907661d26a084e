"""The `outbid` command."""

from outbid.cli.main import main

__all__ = ["main"]
