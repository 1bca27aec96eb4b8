"""Weight images: what a rank of another block holds where the rank of block 0 that it is like holds a weight slice.

A block takes an even part of every dimension that is cut at all, so its slice lies as many parts further along.
"""

from __future__ import annotations

from dataclasses import replace

from simulator.model import Model
from simulator.tile import Span
from simulator.weight_slice import WeightSlice


def image_of(model: Model, weight: WeightSlice, block: int, blocks: int) -> WeightSlice:
    """``weight`` of block 0 as block ``block`` of ``blocks`` has it; the same where every rank holds all of it."""
    match weight.name.split("."):
        case [*first, "experts", number, part]:
            assert model.experts is not None
            further = int(number) + block * model.experts.num_experts // blocks
            return replace(weight, name=".".join((*first, "experts", str(further), part)))
        case ["embed"]:
            return _moved(weight, model.vocab_size, None, block, blocks)
        case ["lm_head"]:
            return _moved(weight, None, model.vocab_size, block, blocks)
        case [*_, "attention", "q"]:
            return _moved(weight, None, model.num_attention_heads * model.head_dim, block, blocks)
        case [*_, "attention", "k" | "v"]:
            return _moved(weight, None, model.num_key_value_heads * model.head_dim, block, blocks)
        case [*_, "attention", "o"]:
            return _moved(weight, model.num_attention_heads * model.head_dim, None, block, blocks)
        case [*_, ("feed_forward" | "shared") as kind, part]:
            shared = 0 if model.experts is None else model.experts.shared_intermediate_size or 0
            width = model.intermediate_size if kind == "feed_forward" else shared
            rows, columns = (width, None) if part == "down" else (None, width)
            return _moved(weight, rows, columns, block, blocks)
        case _:
            return weight


def _moved(weight: WeightSlice, rows: int | None, columns: int | None, block: int, blocks: int) -> WeightSlice:
    """Further along rows, or columns, of which there are so many in all."""
    inputs, outputs = weight.inputs, weight.outputs
    if rows is not None:
        inputs = _further(inputs, block * rows // blocks)
    if columns is not None:
        outputs = _further(outputs, block * columns // blocks)
    return replace(weight, inputs=inputs, outputs=outputs)


def _further(span: Span, by: int) -> Span:
    return (span[0] + by, span[1] + by)
