"""Verify an entry's memory against closed forms: weights and KV cache rank by rank, and what is left of each device."""

from __future__ import annotations

from collections.abc import Iterator

from planner.verification.choice import Inputs
from simulator.allocation import Choice
from simulator.placement import Placement, Stage

TOLERANCE = 0.05  # norms, biases and shards that do not divide
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}


def check_memory(inputs: Inputs, choice: Choice, decode: Choice) -> Iterator[str]:
    """``decode``: the same bucket's decode entry, whose weights and cache stay resident while it prefills."""
    rows = {row.rank: row for row in choice.memory}
    devices = [node.gpu for node in inputs.cluster.nodes for _ in range(node.count * node.gpus)]
    capacity = {gpu.name: gpu.memory_bytes for gpu in inputs.cluster.gpus}
    if len(rows) != len(choice.memory):
        yield "memory: lists a rank twice"
    used = _ranks(choice.placement) | _ranks(decode.placement if choice.phase == "prefill" else choice.placement)
    if not _ranks(choice.placement) <= set(rows):
        yield f"memory: lacks ranks {sorted(_ranks(choice.placement) - set(rows))[:4]} of the placement"
    if not set(rows) <= used:
        yield f"memory: lists ranks {sorted(set(rows) - used)[:4]} that nothing uses"
    for rank, row in sorted(rows.items()):
        if rank >= len(devices):
            yield f"memory: rank {rank}; the cluster has {len(devices)}"
        elif row.capacity_bytes != capacity[devices[rank]]:
            expected = capacity[devices[rank]]
            yield f"memory: rank {rank} has capacity_bytes {row.capacity_bytes}; {devices[rank]} has {expected}"
        if row.headroom_bytes < 0:
            yield f"memory: rank {rank} lacks {-row.headroom_bytes} bytes"
    yield from _weights(inputs, choice, decode)
    yield from _cache(inputs, choice)


def _ranks(placement: Placement) -> set[int]:
    return {rank for stage in placement.stages for rank in (*stage.attention_ranks, *stage.feed_forward_ranks)}


def _weights(inputs: Inputs, choice: Choice, decode: Choice) -> Iterator[str]:
    """Each rank holds its shards of this placement, and at most those of the decode placement beside."""
    own = weight_bytes(inputs, choice.placement)
    beside = weight_bytes(inputs, decode.placement) if choice.phase == "prefill" else {}
    for row in choice.memory:
        low = own.get(row.rank, 0.0)
        high = low + beside.get(row.rank, 0.0)
        low = max(low, beside.get(row.rank, 0.0)) - _idle_table(inputs, choice.placement)
        if not low * (1 - TOLERANCE) <= row.weights_bytes <= high * (1 + TOLERANCE) + 2**20:
            yield f"memory: rank {row.rank} has weights_bytes {row.weights_bytes}; its shards: {low:.0f} to {high:.0f}"


def _idle_table(inputs: Inputs, placement: Placement) -> float:
    """Token replicas that hold no sequence's last token compute no logits, and need no output table."""
    model, last = inputs.model, placement.stages[-1]
    if len(last.feed_forward_ranks) == last.tensor_degree:
        return 0.0
    return model.vocab_size * model.hidden_size / last.tensor_degree * BYTES[model.weight_dtype]


def weight_bytes(inputs: Inputs, placement: Placement) -> dict[int, float]:
    """Bytes of matrices by rank: projections by heads, feed-forward by tensor shard, experts whole, tables by shard."""
    model, size = inputs.model, BYTES[inputs.model.weight_dtype]
    found: dict[int, float] = {}
    for number, stage in enumerate(placement.stages):
        ends = (number == 0) + (number == len(placement.stages) - 1)
        ends = min(ends, 1) if model.tie_word_embeddings else ends
        tables = ends * model.vocab_size * model.hidden_size / stage.tensor_degree
        layers = model.layers[stage.first_layer : stage.last_layer]
        for index, rank in enumerate(stage.feed_forward_ranks):
            total = tables + sum(_feed_forward(inputs, stage, index, layer.routed) for layer in layers)
            found[rank] = found.get(rank, 0.0) + total * size
        for rank, matrices in _projections(inputs, stage).items():
            found[rank] = found.get(rank, 0.0) + matrices * len(layers) * size
    return found


def _feed_forward(inputs: Inputs, stage: Stage, index: int, routed: bool) -> float:
    model = inputs.model
    matrices = 3 if model.gated else 2
    if not routed or model.experts is None:
        return matrices * model.hidden_size * model.intermediate_size / stage.tensor_degree
    experts, ranks = model.experts, len(stage.feed_forward_ranks)
    held = (
        stage.experts[index] if stage.experts else experts.num_experts // ranks + (index < experts.num_experts % ranks)
    )
    shared = matrices * model.hidden_size * experts.shared_intermediate_size / stage.tensor_degree
    gate = model.hidden_size * experts.num_experts
    return held * matrices * model.hidden_size * experts.intermediate_size + shared + gate


def _projections(inputs: Inputs, stage: Stage) -> dict[int, float]:
    """q, k, v and o: where projected. MA Separation's all-to-all exit has W_O on the expert ranks."""
    model = inputs.model
    column = model.hidden_size * model.head_dim
    group = model.num_attention_heads // model.num_key_value_heads
    separate = not set(stage.attention_ranks) & set(stage.feed_forward_ranks)
    if stage.projections == "attention" and separate:
        found = dict.fromkeys(stage.attention_ranks, 0.0)
        exit_all = stage.tensor_degree == 1
        for rank, (first, last) in zip(stage.attention_ranks, _spans(stage.grid.heads), strict=False):
            keys = (last - 1) // group - first // group + 1
            found[rank] = column * ((last - first) * (1 if exit_all else 2) + 2 * keys)
        for rank in stage.feed_forward_ranks if exit_all else ():
            found[rank] = column * model.num_attention_heads
        return found
    found = {}
    if stage.grid.dim_slices > 1:
        for index, rank in enumerate(stage.attention_ranks):
            first, last = _spans(stage.grid.heads)[index // stage.grid.dim_slices]
            keys = (last - 1) // group - first // group + 1
            found[rank] = column * (2 * (last - first) + 2 * keys) / stage.grid.dim_slices
        return found
    base, extra = divmod(model.num_attention_heads, stage.tensor_degree)
    sizes = [base + (index < extra) for index in range(stage.tensor_degree)]
    joint = set(stage.attention_ranks) == set(stage.feed_forward_ranks) and len(stage.grid.heads) == stage.tensor_degree
    spans = _spans(stage.grid.heads if joint else tuple(sizes))
    for index, rank in enumerate(stage.feed_forward_ranks):
        first, last = spans[index % stage.tensor_degree]
        keys = (last - 1) // group - first // group + 1
        found[rank] = column * (2 * (last - first) + 2 * keys)
    return found


def _spans(sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    spans, start = [], 0
    for size in sizes:
        spans.append((start, start + size))
        start += size
    return spans


def _cache(inputs: Inputs, choice: Choice) -> Iterator[str]:
    """All ranks' caches hold every sequence's keys and values of every layer at least once."""
    model = inputs.model
    row = 2 * model.num_key_value_heads * model.head_dim * BYTES[inputs.allocation.dtype] * len(model.layers)
    least = choice.batch * choice.tokens * row
    total = sum(memory.kv_cache_bytes for memory in choice.memory)
    group = model.num_attention_heads // model.num_key_value_heads
    parts = 1 if choice.placement.dim_mode != "all_to_all" else choice.placement.stages[0].grid.dim_slices
    copies = max(min(len(stage.grid.heads) * parts, model.num_attention_heads) for stage in choice.placement.stages)
    if total < least * (1 - TOLERANCE):
        yield f"memory: kv_cache_bytes sum to {total}; {choice.batch} × {choice.tokens} tokens need {least}"
    if choice.phase == "decode" and total > least * (1 + TOLERANCE) * max(1, min(group, copies)) + 2**20:
        yield f"memory: kv_cache_bytes sum to {total}; {choice.batch} × {choice.tokens} tokens need only {least}"
