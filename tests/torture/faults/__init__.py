"""The faults, by what they break."""

from __future__ import annotations

from tests.torture.faults import clocks, network, parts, processes, refusals, servers, topologies

FAULTS = {
    fault.name: fault
    for module in (processes, servers, network, refusals, clocks, topologies, parts)
    for fault in module.FAULTS
}
