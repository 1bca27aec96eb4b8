"""One measured collective, whoever measured it: what nccl-tests, AIConfigurator and Vidur rows become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simulator.kernel import GroupCollective

Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send_recv"]


@dataclass(frozen=True, slots=True)
class CollectiveRow:
    """``num_bytes`` is nccl-tests' size column (all_gather: total output; all_to_all: one rank's buffer)."""

    collective: Kind
    num_bytes: int
    gpus: int
    nodes: int
    duration_s: float
    dtype: str
    place: str
    tag: Literal["imported"] = "imported"

    @property
    def algbw_bytes_per_s(self) -> float:
        """Buffer bytes over time."""
        return self.num_bytes / self.duration_s

    @property
    def busbw_bytes_per_s(self) -> float:
        """What must cross one rank's link, over time."""
        return self.algbw_bytes_per_s * bus_factor(self.collective, self.gpus)

    def kernel(self) -> GroupCollective:
        """The kernel a profile predicts; only a row of a single node is one."""
        assert self.nodes == 1, self
        return GroupCollective(self.collective, self.num_bytes, self.gpus)


def bus_factor(collective: Kind, gpus: int) -> float:
    """Bus over algorithm bandwidth: the share of the buffer that must cross one rank's link.

    Source: nccl-tests doc/PERFORMANCE.md. All-reduce sends and receives (p−1)/p of it twice; all-gather,
    reduce-scatter and all-to-all once; broadcast and send-recv move all of it.
    """
    match collective:
        case "all_reduce":
            return 2 * (gpus - 1) / gpus
        case "all_gather" | "reduce_scatter" | "all_to_all":
            return (gpus - 1) / gpus
        case "broadcast" | "send_recv":
            return 1.0
