"""`simulate`: the daemon's own choosing on a simulated clock, beside the rules of other systems and a clairvoyant."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

from outbid_bench.options import Options
from outbid_bench.report import Section

__all__ = ["run"]


async def run(options: Options) -> Section:
    from outbid_bench.simulate import single, study  # in here: the daemon's code is loaded for this subset only

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=os.cpu_count(), mp_context=spawn) as pool:
        if options.simulation is not None:
            return await single.section(pool, options.simulation)
        return await study.section(pool, options)
