"""Statements T01–T21: two-level partitioning's shapes, forms, bytes and claims.

The per-slice form is run in numpy to show its error.
"""

from __future__ import annotations

import numpy as np

from planner.documents.two_level import (
    FORMS,
    PARAMETERS_AS_WRITTEN,
    TwoLevel,
    attend,
    attend_score_sum,
    block_coverage,
    block_shape,
    block_shape_as_written,
    form_errors,
    group_output_width,
    input_bytes,
    most_head_parallel_devices,
    moved_bytes,
    parameters_per_device,
    relative_error,
    score_bytes,
)
from planner.paper.statement import Statement, close, judged, specified
from planner.paper.steps import model
from simulator.units import format_bytes

Rows = tuple[Statement, ...]


def rows() -> Rows:
    sizes = TwoLevel()
    return (*_shapes(sizes), *_blocks(sizes), *_algorithm(sizes), *_storage(sizes), *_claims(sizes))


def _shapes(sizes: TwoLevel) -> Rows:
    preset = model("two-level")
    return (
        specified(
            "T01",
            "B = 128, L = 10000, D = 32 × 128 = 4096",
            f"{sizes.batch}, {sizes.length}, {sizes.hidden_size}",
            implemented=sizes.hidden_size == preset.hidden_size == 4096,
        ),
        judged(
            "T02",
            "Q, K, V = X W with 4096 × 4096 weights, softmax(QKᵀ/√d)V",
            f"{preset.attention_parameters():,} parameters with W_O",
            holds=preset.attention_parameters() == 4 * 4096**2,
            criterion="exact",
        ),
        judged(
            "T03",
            "n = 4 groups, m = 4 slices, 16 partitions",
            f"{sizes.devices}; n divides 32, m divides 128",
            holds=sizes.devices == 16,
            criterion="exact",
        ),
        judged(
            "T04",
            "8 heads a group, 32 dimensions a slice",
            f"{sizes.heads_per_group} and {sizes.slice_dim}",
            holds=(sizes.heads_per_group, sizes.slice_dim) == (8, 32),
            criterion="exact",
        ),
    )


def _blocks(sizes: TwoLevel) -> Rows:
    written, right = block_shape_as_written(sizes), block_shape(sizes)
    columns = right[1]
    return (
        judged(
            "T05",
            "W is cut into blocks of 256 × 256",
            f"sixteen of {written[0]} × {written[1]} cover "
            f"{100 * block_coverage(sizes, written):.2f} % of W; {right[0]} × {right[1]} cover "
            f"{100 * block_coverage(sizes, right):.0f} %",
            holds=close(block_coverage(sizes, written), 1),
            criterion="the blocks cover W",
        ),
        judged(
            "T06",
            "Q, K, V of partition (i, j) = X W^(i,j)",
            f"X is [.., {sizes.hidden_size}], the written block has {block_shape_as_written(sizes)[0]} rows",
            holds=block_shape_as_written(sizes)[0] == sizes.hidden_size,
            holds_if=block_shape(sizes)[0] == sizes.hidden_size,
            criterion="the product is defined",
            assuming=f"blocks of {sizes.hidden_size} × {columns} and the whole X",
        ),
        judged(
            "T11",
            "4 × 4 devices, communication in rows only",
            f"W_O still sums {format_bytes(input_bytes(sizes))} over the {sizes.groups} groups",
            holds=input_bytes(sizes) * (sizes.groups - 1) == 0,
            holds_if=sizes.groups * sizes.slices == 16,
            criterion="no bytes between groups",
            assuming="up to the concatenation, without the output projection",
        ),
        specified(
            "T17",
            "fp16 computation",
            f"preset dtype {model('two-level').weight_dtype}",
            implemented=model("two-level").weight_dtype == "fp16",
        ),
    )


def _algorithm(sizes: TwoLevel) -> Rows:
    per_slice, score_sum = form_errors(np.random.default_rng(0))
    return (
        judged(
            "T07",
            "softmax(Q K ᵀ/√d_s) V on each slice",
            f"relative error {100 * per_slice:.0f} % against attention on "
            f"normal data: 128 heads of 32, another model; summing scores first: {score_sum:.0e}",
            holds=per_slice < 1e-6,
            criterion="relative error below 1e-6",
        ),
        judged(
            "T08",
            "concatenating m slices gives a group's output",
            f"exact when scores are summed first: {score_sum:.0e}",
            holds=score_sum < 1e-6 and _slices_concatenate(),
            criterion="relative error below 1e-6",
            assuming="V is sliced, the softmax is shared",
        ),
        judged(
            "T09",
            "a group's output is L × 128",
            f"L × {group_output_width(sizes)}",
            holds=group_output_width(sizes) == 128,
            criterion="exact",
        ),
        judged(
            "T10",
            "concatenating groups gives L × 4096",
            f"{sizes.groups} × {group_output_width(sizes)} = {sizes.groups * group_output_width(sizes)}",
            holds=sizes.groups * group_output_width(sizes) == 4096,
            criterion="exact",
        ),
    )


def _slices_concatenate() -> bool:
    q, k, v = np.random.default_rng(1).standard_normal((3, 2, 32, 64))
    return relative_error(attend_score_sum(q, k, v, 4), attend(q, k, v)) < 1e-12


def activation_factor(sizes: TwoLevel) -> float:
    """Undivided over a device's activations: X, Q, K, V and output; X stays whole on every device."""
    one = 1 / sizes.devices
    return 5 / (1 + 4 * one)


def memory_factor(sizes: TwoLevel) -> float:
    """Undivided over a device's bytes, fp16 weights of Q, K, V included."""
    weights = 2 * 3 * sizes.hidden_size**2
    x = input_bytes(sizes)
    return (weights + 5 * x) / (weights / sizes.devices + x + 4 * x / sizes.devices)


def _storage(sizes: TwoLevel) -> Rows:
    moved = {form: moved_bytes(sizes, form) for form in FORMS}
    whole = 3 * sizes.hidden_size**2
    ours = parameters_per_device(sizes)
    text = ", ".join(f"{form} {format_bytes(num)}" for form, num in moved.items())
    return (
        judged(
            "T12",
            "each device receives an X slice",
            f"the whole X, {format_bytes(input_bytes(sizes))}",
            holds=block_shape(sizes)[0] * sizes.devices <= sizes.hidden_size,
            criterion="a slice of X suffices",
            assuming="it would with block-diagonal weights",
        ),
        judged(
            "T13",
            "final gather is minimal",
            f"sent by a device: {text}",
            holds=min(moved[form] for form in FORMS if form != "per_slice") < 0.1 * input_bytes(sizes) / sizes.devices,
            criterion="an exact form sends under a tenth of its output",
        ),
        judged(
            "T14",
            "each device stores 1/16 of the parameters",
            f"{ours / whole:.4f}",
            holds=close(ours / whole, 1 / 16),
            criterion="within 5 %",
        ),
        judged(
            "T15", "196,608 parameters a device", f"{ours:,}", holds=ours == PARAMETERS_AS_WRITTEN, criterion="exact"
        ),
        judged(
            "T16",
            "activation storage is 16 times smaller",
            f"{activation_factor(sizes):.1f} times: X is {format_bytes(input_bytes(sizes))} on every device; "
            f"unfused scores {format_bytes(score_bytes(sizes))} on each of 16, a quarter of all",
            holds=close(activation_factor(sizes), 16),
            criterion="X, Q, K, V and outputs are 1/16 within 5 %",
        ),
    )


def _claims(sizes: TwoLevel) -> Rows:
    moved = moved_bytes(sizes, "all_to_all")
    whole, ours = 3 * sizes.hidden_size**2, parameters_per_device(sizes)
    return (
        judged(
            "T18",
            "16 devices exceed the 32 heads",
            f"{sizes.devices} < {most_head_parallel_devices(sizes)}",
            holds=sizes.devices > most_head_parallel_devices(sizes),
            criterion="exact",
        ),
        judged(
            "T19",
            "equal blocks balance the load",
            f"every device has {sizes.block_columns} columns of Q, K and V",
            holds=sizes.block_columns * sizes.devices == sizes.hidden_size,
            criterion="exact",
        ),
        judged(
            "T20",
            "16 times less memory a device",
            f"weights {whole / ours:.0f} ×, X 1 ×, together {memory_factor(sizes):.1f} ×",
            holds=close(memory_factor(sizes), 16),
            holds_if=close(whole / ours, 16),
            criterion="weights and activations, within 5 %",
            assuming="weights only",
        ),
        judged(
            "T21",
            "hierarchical aggregation reduces global communication",
            f"head parallelism on 16 GPUs sends 0 bytes before W_O; here {format_bytes(moved)} at best, exactly",
            holds=moved <= 0,
            criterion="fewer bytes than head parallelism",
        ),
    )
