"""Host: what a node's CPU cores and memory cost the ranks that share them. GPUs of their own have none of this."""

from __future__ import annotations

from pydantic import Field

from simulator.formats.files import Record


class Host(Record):
    """Shared by all ranks of a CPU node. ``None``: as the cluster states, or not modelled."""

    core_capacity: float | None = Field(
        default=None, gt=0, description="cores' worth of work a second; None: node.cores"
    )
    transfer_core_s_per_byte: float = Field(default=0.0, ge=0, description="core time of a byte, at each end")
    transfer_latency_s: float | None = Field(default=None, ge=0, description="None: the node link's")
    transfer_issue_s: float = Field(default=0.0, ge=0, description="a rank's own thread's time to send one message")
    send_issue_s_per_byte: float = Field(default=0.0, ge=0, description="and for each byte it sends")
    receive_s: float = Field(default=0.0, ge=0, description="a rank's own thread's time to take in one that has come")
    receive_s_per_byte: float = Field(default=0.0, ge=0, description="and for each byte of it")
    collective_message_s: float | None = Field(
        default=None, gt=0, description="a member's thread's time for a message of a collective; None: as of others"
    )
    collective_s_per_byte: float = Field(default=0.0, ge=0, description="and for each byte that a member sends")
    turn_share: float = Field(
        default=0.0, ge=0, description="how much more core time kernels take where ranks take turns on a core"
    )
    view_s: float = Field(default=0.0, ge=0, description="an operation that launches no kernel, e.g. a slice")
    memory_bandwidth_bytes_per_s: float | None = Field(
        default=None, gt=0, description="of the node, shared by all kernels; None: not modelled"
    )
