"""World: what a program runs on besides its cluster: collectives inside a node, hosts, interference, bytes moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from simulator.costs.collective_cost import InNode, unmeasured
from simulator.costs.pricing import Prices, Quantile, measured_collectives
from simulator.host import Host
from simulator.interference import Interference
from simulator.profile import Profile

Seconds = Sequence[float] | npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a program runs on besides its cluster. ``moved_bytes[r][i]``: device-memory traffic of an operation, for
    CPU nodes that share memory bandwidth. ``launch_s[r]`` is only passed on to the timeline."""

    in_node: InNode = unmeasured
    hosts: Mapping[str, Host] = field(default_factory=dict)
    interference: Mapping[str, Interference] = field(default_factory=dict)
    moved_bytes: Sequence[Seconds] | None = None
    launch_s: tuple[float, ...] | None = None
    record_load: bool = False

    def priced(self, prices: Prices) -> World:
        return replace(self, moved_bytes=prices.moved_bytes, launch_s=prices.launch_s)


def world_of(profiles: Mapping[str, Profile], quantile: Quantile = "median") -> World:
    """Collectives and hosts as the profiles measured them."""
    hosts = {name: profile.host for name, profile in profiles.items() if profile.host is not None}
    taken = {name: profile.interference for name, profile in profiles.items() if profile.interference is not None}
    return World(in_node=measured_collectives(profiles, quantile), hosts=hosts, interference=taken)
