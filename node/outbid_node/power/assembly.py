"""The meter of a node, put together with what it asks and with what the node's history knows of its watts."""

from __future__ import annotations

from outbid_contracts.errors import OutbidError
from outbid_node.catalogue import Catalogue
from outbid_node.config_sections import PowerSection
from outbid_node.history.interface import History
from outbid_node.power.account import Account
from outbid_node.power.meter import EnergyMeter
from outbid_node.resources import ResourceProbe
from outbid_node.runners.pool import RunnerPool, key_of

RUNS = """
SELECT capability, model, device, sum(energy_j), sum(took_s)
FROM (SELECT * FROM runs WHERE energy_j IS NOT NULL AND took_s > 0 ORDER BY ended_ms DESC LIMIT 5000)
GROUP BY capability, model, device
ORDER BY max(ended_ms)
"""


def make_meter(
    power: PowerSection, resources: ResourceProbe, pool: RunnerPool, history: History, catalogue: Catalogue
) -> EnergyMeter:
    meter = EnergyMeter(power, resources.read, pool.processes)
    meter.recall = lambda: recall(meter.account, history, catalogue)
    resources.drawn = meter.drawn
    return meter


async def recall(account: Account, history: History, catalogue: Catalogue) -> None:
    """The first bids after a start then promise what such attempts drew before. Models that are gone are left out."""
    for capability, model, device, joules, seconds in await history.read(RUNS):
        try:
            entry, file = catalogue.find(capability, model)
        except OutbidError:
            continue
        account.recall(device, key_of(entry.capability, file), joules, seconds)
