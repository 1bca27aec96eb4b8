"""The race of a ring's replicas: when each can end a layer, given when every block can have come round to it.

Follow one tensor shard (the first, largest) of every replica. In step s the block at hand goes to the next replica and
is attended to; a block's way to a replica s places on is s hops, one after the other, and every hop of a rank waits
for its hop before (sends share a stream):

    come[s][r] = max(come[s − 1][r − 1], come[s − 1][r]) + hop(block r − s)      come[0][r] = when r has projected
    done[s][r] = max(done[s − 1][r], come[s][r]) + attention[s][r]               if r's queries see any of that block
    end[r]     = done[last][r] + after[r]

Left out, so this stays a bound: NICs that a node's ranks share, hops inside a node, sends of the layer before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.bounds.rates import Array, Numbers


@dataclass(frozen=True)
class Rounds:
    """One layer of rings. Of every replica, those of a ring side by side: the one before it in the ring; seconds before
    and after attention; [replicas, steps] of attention, and of the hop that brings a step's block; ``sees``: whether
    attention is due; ``sent``: whether the block has tokens (not beyond a ring's last step)."""

    previous: Numbers
    before: Array
    after: Array
    attention: Array
    hop_s: Array
    sees: npt.NDArray[np.bool_]
    sent: npt.NDArray[np.bool_]


def run_rounds(ends: Array, rounds: Rounds) -> Array:
    """When every replica ends the layer, from when it ended the one before."""
    projected = ends + rounds.before
    done = projected + rounds.attention[:, 0]
    at_hand, last_hop = projected, np.full_like(projected, -np.inf)
    for step in range(1, rounds.attention.shape[1]):
        sent = rounds.sent[:, step]
        come = np.maximum(at_hand[rounds.previous], last_hop) + rounds.hop_s[:, step]
        last_hop = np.where(sent, come, last_hop)
        at_hand = np.where(sent, come, -np.inf)
        turn = np.maximum(done, come) + rounds.attention[:, step]
        done = np.where(rounds.sees[:, step], turn, done)
    return np.asarray(done + rounds.after)
