"""Measurements of Outbid beside other systems, on this machine, in one run: `python -m outbid_bench --help`."""
