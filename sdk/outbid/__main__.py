"""`python -m outbid` is the `outbid` command."""

from outbid.cli import main

main()
