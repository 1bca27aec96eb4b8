"""Lowering: (model, step, placement) → program. One core for every scheme of the lattice.

A step is lowered micro-batch by micro-batch as a generator that pauses where another micro-batch can run: after the
attention inputs are sent off, and after each all-reduce is issued. The order in which the generators are advanced is
the schedule, and all there is to overlap:

    separated groups   one micro-batch's feed-forward runs while the pool attends for another (ping-pong)
    one stage          micro-batches alternate at every pause, so all-reduces hide behind the other's matmuls
    several stages     micro-batch after micro-batch, so the pipeline fills

A feed-forward of layer l depends on the same micro-batch's attention of layer l: with one micro-batch nothing overlaps.
Not lowered: prefill on top of cached tokens by a ring or in dimension slices; decoding with two-level ``gather_qk``.
"""

from simulator.lowering.step import check, decode_parts, lower

__all__ = ["check", "decode_parts", "lower"]
