"""The race of context-parallel replicas: when each can end a layer, given when the others could send it their keys.

Replica r projects at P_r, then takes the keys it sees from every other through its own NIC, in the order they can be
sent: a single machine with release dates, where t = max(t, P_s + latency) + bytes_s/rate in rising P_s is the earliest
any sharing of the NIC ends. Attention then starts, and the layer ends:

    no streams   end_r = max(P_r, arrival_r) + attention_r + after_r
    streams      end_r ≥ max(P_r + attention_r, arrival_r + the last piece's attention) + after_r

(pieces are attended to in order, and the earliest that all can have arrived is no earlier than the last one's turn)

Left out, so this stays a bound: the senders' NICs, keys that pass links inside a node.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.bounds.rates import Array, Numbers

LAYERS = 8  # raced one by one; more of the same grow at least by the least layer
REPLICAS = 256  # more are not raced


@dataclass(frozen=True)
class Leg:
    """One layer of candidates with equally many replicas, [candidates, replicas]: seconds; ``tokens_s`` [c, s, r]: the
    NIC's seconds for the keys r needs of s; ``needs`` [c, s, r]: whether it needs any; ``hop_s`` [c, s, r]: latency."""

    before: Array
    attention: Array
    last: Array
    after: Array
    keys_s: Array
    needs: Array
    hop_s: Array
    streamed: Array


def run_leg(ends: Array, leg: Leg) -> Array:
    """When every replica ends the layer, from when it ended the one before."""
    projected = ends + leg.before
    arrival = np.zeros_like(ends)
    order = np.argsort(projected, axis=1, kind="stable")
    rows = np.arange(len(ends))
    for turn in range(ends.shape[1]):
        sender = order[:, turn]
        ready = projected[rows, sender][:, None] + leg.hop_s[rows, sender]
        needed = leg.needs[rows, sender] > 0
        arrival = np.where(needed, np.maximum(arrival, ready) + leg.keys_s[rows, sender], arrival)
    plain = np.maximum(projected, arrival) + leg.attention
    streamed = np.maximum(projected + leg.attention, arrival + leg.last)
    return np.asarray(np.where(leg.streamed[:, None] > 0, streamed, plain) + leg.after)


def needed_tokens(edges: tuple[Numbers, Numbers, Numbers, Numbers], *, causal: bool) -> Numbers:
    """[candidates, senders, receivers]: tokens of a sender's spans that a receiver's last query sees."""
    a1, b1, a2, b2 = (edge[:, :, None] for edge in edges)
    if not causal:
        return np.broadcast_to(b1 - a1 + b2 - a2, (*edges[0].shape, edges[0].shape[1])).astype(np.int64)
    seen = np.maximum(edges[1], edges[3])[:, None, :]
    first = np.clip(np.minimum(b1, seen) - a1, 0, None)
    return np.asarray(first + np.clip(np.minimum(b2, seen) - a2, 0, None))
