"""Interference: what a transfer takes from a GPU's kernels while it is in flight. Absent: nothing.

A collective's copy and reduce kernels hold SMs and device memory, so a matmul beside one runs slower. As calibrated:
the share of a kernel's rate lost beside a collective, and beside a point-to-point message, that runs at its link's full
rate; in proportion where the link is shared. The transfer itself keeps its rate (its SMs are held, not competed for).
"""

from __future__ import annotations

from pydantic import Field

from simulator.formats.files import Record


class Interference(Record):
    """Shares of a kernel's rate, both from measured pairs of a kernel alone and beside a transfer."""

    collective_share: float = Field(default=0.0, ge=0, lt=1)
    message_share: float = Field(default=0.0, ge=0, lt=1)
    source: str = "assumed"
