"""Verify one entry of a policy: its placement fits model and cluster, its numbers agree with each other."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import isclose

from simulator.allocation import Allocation, Alternative, Choice, Interval
from simulator.cluster import Cluster
from simulator.model import Model
from simulator.placement import Placement, Stage
from simulator.power import BOARD_LIMIT_W
from simulator.workload import Workload

TOLERANCE = 1e-6
EXACTNESS = ("exact", "drops-possible", "model-changing")  # each budget allows those before it
BINDING = {
    "gemm": "compute", "experts": "compute", "memory": "compute", "attention": "attention",
    "collective": "collective", "network": "network", "waiting": "network",
}  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """An allocation and what it was made from."""

    allocation: Allocation
    model: Model
    cluster: Cluster
    workload: Workload

    @property
    def num_ranks(self) -> int:
        return sum(node.count * node.gpus for node in self.cluster.nodes)


def check_choice(inputs: Inputs, choice: Choice) -> Iterator[str]:
    yield from (f"placement.{fault}" for fault in check_placement(inputs, choice.placement, choice))
    yield from _gpus(inputs, choice)
    yield from _metrics(inputs, choice)
    yield from _binding(choice)
    yield from _exactness(inputs, choice)
    yield from _rivals(inputs, choice)
    yield from _pareto_and_search(inputs, choice)


def check_placement(inputs: Inputs, placement: Placement, choice: Choice) -> Iterator[str]:
    """Layers, ranks, heads, experts and blocks, stage by stage."""
    layers = len(inputs.model.layers)
    if placement.stages[-1].last_layer != layers:
        yield f"stages: end at layer {placement.stages[-1].last_layer}; the model has {layers}"
    seen: set[int] = set()
    for index, stage in enumerate(placement.stages):
        ranks = {*stage.attention_ranks, *stage.feed_forward_ranks}
        if max(ranks) >= inputs.num_ranks:
            yield f"stages[{index}]: uses rank {max(ranks)}; the cluster has {inputs.num_ranks}"
        if ranks & seen:
            yield f"stages[{index}]: shares ranks {sorted(ranks & seen)[:4]} with an earlier stage"
        seen |= ranks
        yield from (f"stages[{index}].{fault}" for fault in _stage(inputs, stage, choice))
    if placement.micro_batches > choice.batch:
        yield f"micro_batches: {placement.micro_batches} of a batch of {choice.batch}"


def _stage(inputs: Inputs, stage: Stage, choice: Choice) -> Iterator[str]:
    model, grid = inputs.model, stage.grid
    if sum(grid.heads) != model.num_attention_heads or min(grid.heads) < 1:
        yield f"grid.heads: {list(grid.heads)} must be positive and sum to {model.num_attention_heads}"
    if stage.tensor_degree > model.num_attention_heads and grid.dim_slices == 1:
        yield f"tensor_degree: {stage.tensor_degree} shards of {model.num_attention_heads} heads"
    if grid.kv_blocks > choice.tokens or grid.query_blocks > max(choice.tokens, choice.batch):
        yield f"grid: {grid.query_blocks} query and {grid.kv_blocks} KV blocks of {choice.tokens} tokens"
    windows = any(layer.window for layer in model.layers[stage.first_layer : stage.last_layer])
    if windows and grid.kv_blocks > 1:
        yield f"grid.kv_blocks: {grid.kv_blocks}, but a layer of it has a window"
    if grid.dim_slices != 1:
        yield from (f"grid.dim_slices: {grid.dim_slices} {fault}" for fault in _slices(inputs, stage, choice))
    replicas = len(stage.feed_forward_ranks) // stage.tensor_degree
    if replicas > 1 and grid.query_blocks not in (1, replicas):
        yield f"grid.query_blocks: {grid.query_blocks}; the feed-forward has {replicas} token replicas"
    if choice.phase == "decode" and max(replicas, grid.query_blocks) > choice.batch:
        yield f"grid.query_blocks: {max(replicas, grid.query_blocks)} parts of {choice.batch} sequences"
    if stage.experts is not None and model.experts is not None and sum(stage.experts) != model.experts.num_experts:
        yield f"experts: {list(stage.experts)} must sum to {model.experts.num_experts}"
    if stage.experts is not None and model.experts is None:
        yield "experts: given, but the model has none"


def _slices(inputs: Inputs, stage: Stage, choice: Choice) -> Iterator[str]:
    """Two-level partitioning: what slices can be combined with, and which forms can decode."""
    model, grid, mode = inputs.model, stage.grid, choice.placement.dim_mode
    if grid.query_blocks * grid.kv_blocks > 1:
        yield f"with {grid.query_blocks} query and {grid.kv_blocks} KV blocks; slices go with heads alone"
    if stage.attention_ranks != stage.feed_forward_ranks or stage.tensor_degree != len(stage.attention_ranks):
        yield "needs attention and feed-forward on the same ranks, one tensor shard each"
    width, rest = divmod(model.head_dim, grid.dim_slices)
    if rest or (model.rope_theta is not None and width % 2):
        yield f"does not cut head_dim {model.head_dim} evenly (rotary positions: in pairs)"
    if model.qk_norm:
        yield "cuts what qk_norm normalises"
    if mode == "all_to_all" and any(heads % grid.dim_slices for heads in grid.heads):
        yield f"does not divide the head groups {list(grid.heads)}, which dim_mode all_to_all makes whole"
    if mode == "gather_qk":
        yield "with dim_mode gather_qk leaves no cache that a decode could read"
    others = [c for c in inputs.allocation.policy if c.bucket == choice.bucket and c.phase != choice.phase]
    if any(other.placement != choice.placement for other in others):
        yield "keeps its cache in slices, but the bucket's other phase has another placement"


def _gpus(inputs: Inputs, choice: Choice) -> Iterator[str]:
    attention = {rank for stage in choice.placement.stages for rank in stage.attention_ranks}
    feed_forward = {rank for stage in choice.placement.stages for rank in stage.feed_forward_ranks}
    if choice.num_gpus != len(attention | feed_forward):
        yield f"num_gpus: {choice.num_gpus}; the placement uses {len(attention | feed_forward)}"
    if choice.pool_gpus != len(attention - feed_forward):
        yield f"pool_gpus: {choice.pool_gpus}; {len(attention - feed_forward)} ranks only attend"
    if choice.num_gpus > inputs.allocation.limits.max_gpus:
        yield f"num_gpus: {choice.num_gpus} exceeds max_gpus {inputs.allocation.limits.max_gpus}"
    base = inputs.allocation.limits.base_gpus
    pooled = attention - feed_forward and choice.placement.stages[0].projections == "feed_forward"
    if base is not None and pooled and len(feed_forward) != base:
        yield f"placement: a pool on a base of {len(feed_forward)}; base_gpus is {base}"


def _metrics(inputs: Inputs, choice: Choice) -> Iterator[str]:
    metrics, step = choice.metrics, choice.metrics.step_s
    tokens = choice.batch * (choice.tokens if choice.phase == "prefill" else 1)
    mine, none = ("ttft_s", "tpot_s") if choice.phase == "prefill" else ("tpot_s", "ttft_s")
    if getattr(metrics, mine) != step:
        yield f"metrics.{mine}: must be the step's {step.value:.6g} s"
    if getattr(metrics, none) is not None:
        yield f"metrics.{none}: a {choice.phase} entry has none"
    for name, expected in (
        ("tokens_per_s", tokens / step.value if step.value > 0 else 0.0),
        ("tokens_per_s_per_gpu", tokens / step.value / choice.num_gpus if step.value > 0 else 0.0),
        ("gpu_seconds_per_token", step.value * choice.num_gpus / tokens),
    ):
        value = getattr(metrics, name).value
        if not isclose(value, expected, rel_tol=TOLERANCE):
            made = f"{tokens} tokens in {step.value:.6g} s on {choice.num_gpus} GPUs make {expected:.6g}"
            yield f"metrics.{name}: {value:.6g}; {made}"
    yield from _energy(inputs, choice, tokens)
    for name in ("step_s", "tokens_per_s", "tokens_per_s_per_gpu", "gpu_seconds_per_token"):
        interval: Interval = getattr(metrics, name)
        if interval.tag not in ("fitted", "assumed", "imported"):
            yield f"metrics.{name}.tag: {interval.tag!r}; a prediction is fitted, imported or assumed"
        if interval.value <= 0 or interval.p05 < 0:
            yield f"metrics.{name}: {interval.value:.6g} (p05 {interval.p05:.6g}) must be positive"
    floor_s = least_seconds(inputs, choice)
    if step.value < floor_s:
        yield f"metrics.step_s: {step.value:.6g} s is less than {floor_s:.6g} s, all FLOPs at all GPUs' peak"
    limits = inputs.allocation.limits
    slo_s = limits.ttft_slo_s if choice.phase == "prefill" else limits.tpot_slo_s
    met_s = step.p95 if limits.slo_quantile == "p95" else step.value
    if slo_s is not None and met_s > slo_s:
        yield f"metrics.step_s: {met_s:.6g} s ({limits.slo_quantile}) misses the SLO of {slo_s:.6g} s"


def _energy(inputs: Inputs, choice: Choice, tokens: int) -> Iterator[str]:
    """Every GPU of the placement at its board's limit for the step; files from before it was written have none."""
    energy, watts = choice.metrics.joules_per_token, watts_of(inputs, choice.placement.ranks)
    if energy is None:
        if inputs.allocation.objective == "joule":
            yield "metrics.joules_per_token: missing, but it is the objective"
        return
    if watts is None:
        yield f"metrics.joules_per_token: {energy.value:.6g}, but a GPU's power_w is unknown"
        return
    expected = choice.metrics.step_s.value * watts / tokens
    if not isclose(energy.value, expected, rel_tol=TOLERANCE):
        yield f"metrics.joules_per_token: {energy.value:.6g}; {watts:g} W for the step make {expected:.6g}"
    if energy.tag != "assumed":
        yield f"metrics.joules_per_token.tag: {energy.tag!r}; boards' limits are not measured, so 'assumed'"


def least_seconds(inputs: Inputs, choice: Choice) -> float:
    """FLOPs of the projections and feed-forwards at the peak rate of every GPU used: no run is faster."""
    model = inputs.model
    tokens = choice.batch * (choice.tokens if choice.phase == "prefill" else 1)
    total = 0.0
    for layer in model.layers:
        weights = 2 * model.hidden_size * model.head_dim * (model.num_attention_heads + model.num_key_value_heads)
        if not layer.routed:
            weights += (3 if model.gated else 2) * model.hidden_size * model.intermediate_size
        total += 2.0 * tokens * weights
    peaks = {gpu.name: gpu.compute_flop_per_s for gpu in inputs.cluster.gpus}
    by_rank = [peaks[node.gpu] for node in inputs.cluster.nodes for _ in range(node.count * node.gpus)]
    fastest = max(by_rank)
    return total / (fastest * choice.num_gpus)


def _binding(choice: Choice) -> Iterator[str]:
    shares = choice.binding.shares
    if not isclose(sum(shares.values()), 1.0, abs_tol=0.01):
        yield f"binding.shares: sum to {sum(shares.values()):.4g}, not 1"
    if any(share < 0 for share in shares.values()):
        yield "binding.shares: must not be negative"
    if set(shares) - set(BINDING):
        yield f"binding.shares: unknown {sorted(set(shares) - set(BINDING))}"
    elif shares:
        largest = max(shares, key=lambda name: (shares[name], name))
        if BINDING[largest] != choice.binding.kind:
            yield f"binding.kind: {choice.binding.kind!r}, but {largest} has the largest share"
        if not isclose(shares[largest], choice.binding.share, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            yield f"binding.share: {choice.binding.share:.4g}; {largest} has {shares[largest]:.4g}"


def _exactness(inputs: Inputs, choice: Choice) -> Iterator[str]:
    model = inputs.model
    routed = any(layer.routed for layer in model.layers)
    drops = routed and model.experts is not None and model.experts.capacity_factor is not None
    sliced = any(stage.grid.dim_slices > 1 for stage in choice.placement.stages)
    expected = "model-changing" if sliced and choice.placement.dim_mode == "per_slice" else "exact"
    expected = "drops-possible" if drops and expected == "exact" else expected
    if choice.exactness != expected:
        yield f"exactness: {choice.exactness!r}; this model and placement are {expected!r}"
    budget = inputs.allocation.limits.exactness
    if EXACTNESS.index(expected) > EXACTNESS.index(budget):
        yield f"exactness: {expected!r} exceeds the budget of limits.exactness {budget!r}"


def _rivals(inputs: Inputs, choice: Choice) -> Iterator[str]:
    ours = choice.metrics.step_s.value * weight_of(inputs, choice.placement.ranks)
    for name, rival in _alternatives(choice):
        yield from (f"{name}.{fault}" for fault in _alternative(rival))
        allowed = rival.num_gpus <= inputs.allocation.limits.max_gpus and not _misses_slo(inputs, choice, rival)
        if rival.step_s is not None and rival.placement is not None and allowed and choice.search.gap == 0:
            theirs = rival.step_s.value * weight_of(inputs, rival.placement.ranks)
            if theirs < ours * (1 - TOLERANCE):
                yield f"{name}: {rival.name} scores {theirs:.6g}, better than the choice's {ours:.6g}, at gap 0"
    pool = 0 if choice.tokens < 4096 else min(8 * (choice.tokens // 4096).bit_length(), 32)
    if choice.rule.infeasible is None and choice.rule.pool_gpus != pool:
        yield f"rule.pool_gpus: {choice.rule.pool_gpus}; the documents give {pool} at {choice.tokens} tokens"
    if len(choice.baselines) != 4:
        yield f"baselines: {len(choice.baselines)}; the base alone and three of the documents are needed"
    yield from _margin(inputs, choice, ours)


def _margin(inputs: Inputs, choice: Choice, ours: float) -> Iterator[str]:
    second, margin = choice.runner_up, choice.margin
    if (second is None) != (margin is None):
        yield "margin: goes with a runner-up, and only with one"
    elif second is not None and margin is not None and second.step_s is not None and second.placement is not None:
        expected = second.step_s.value * weight_of(inputs, second.placement.ranks) / ours - 1
        if not isclose(margin.value, expected, rel_tol=1e-4, abs_tol=TOLERANCE):
            yield f"margin.value: {margin.value:.6g}; the runner-up is {expected:.6g} behind"
        if second.placement == choice.placement:
            yield "runner_up.placement: is the choice itself"
    close = margin is not None and margin.p05 <= 0
    if choice.too_close_to_call != close:
        yield f"too_close_to_call: {choice.too_close_to_call}; the margin's interval says {close}"


def _alternatives(choice: Choice) -> Iterator[tuple[str, Alternative]]:
    yield "rule", choice.rule
    yield from ((f"baselines[{index}]", one) for index, one in enumerate(choice.baselines))
    if choice.runner_up is not None:
        yield "runner_up", choice.runner_up
    if choice.best_pool is not None:
        yield "best_pool", choice.best_pool
        if not choice.best_pool.pool_gpus:
            yield "best_pool", choice.best_pool.model_copy(update={"num_gpus": -1})


def _alternative(rival: Alternative) -> Iterator[str]:
    if rival.num_gpus < 0:
        yield "pool_gpus: 0, so it is no pool"
        return
    if rival.placement is None:
        if rival.infeasible is None or rival.num_gpus or rival.pool_gpus:
            yield f"pool_gpus: {rival.pool_gpus} of {rival.num_gpus} without a placement; give one, or a reason and 0"
        return
    if rival.num_gpus != len(rival.placement.ranks):
        yield f"num_gpus: {rival.num_gpus}; its placement uses {len(rival.placement.ranks)}"
    if rival.pool_gpus != len(rival.placement.pool_ranks):
        yield f"pool_gpus: {rival.pool_gpus}; its placement has {len(rival.placement.pool_ranks)}"
    if rival.step_s is None and rival.bound_s is None and rival.infeasible is None:
        yield "step_s: missing, with neither a bound nor a reason"


def _misses_slo(inputs: Inputs, choice: Choice, rival: Alternative) -> bool:
    limits = inputs.allocation.limits
    slo_s = limits.ttft_slo_s if choice.phase == "prefill" else limits.tpot_slo_s
    if slo_s is None or rival.step_s is None:
        return False
    return (rival.step_s.p95 if limits.slo_quantile == "p95" else rival.step_s.value) > slo_s


def weight_of(inputs: Inputs, ranks: Collection[int]) -> float:
    """What a second counts: itself, every GPU held, or the watts of their boards' limits."""
    if inputs.allocation.objective == "joule":
        return watts_of(inputs, ranks) or 0.0
    return len(set(ranks)) if inputs.allocation.objective in ("tps_per_gpu", "cost") else 1


def watts_of(inputs: Inputs, ranks: Collection[int]) -> float | None:
    """Sum of the boards' limits of these ranks; None where one is unknown."""
    limits = {gpu.name: gpu.power_w or BOARD_LIMIT_W.get(gpu.name) for gpu in inputs.cluster.gpus}
    devices = [node.gpu for node in inputs.cluster.nodes for _ in range(node.count * node.gpus)]
    total = 0.0
    for rank in set(ranks):
        limit = limits[devices[rank]] if rank < len(devices) else None
        if limit is None:
            return None
        total += limit
    return total


def _pareto_and_search(inputs: Inputs, choice: Choice) -> Iterator[str]:
    points, search = choice.pareto, choice.search
    for before, after in pairwise(points):
        if not (before.num_gpus <= after.num_gpus and before.step_s > after.step_s):
            yield f"pareto: {after.name} ({after.num_gpus} GPUs, {after.step_s:.6g} s) is not beyond {before.name}"
    if not any(
        point.num_gpus <= choice.num_gpus and point.step_s <= choice.metrics.step_s.value * (1 + TOLERANCE)
        for point in points
    ):
        yield f"pareto: no point is as good as the choice ({choice.num_gpus} GPUs, {choice.metrics.step_s.value:.6g} s)"
    if not search.candidates >= search.lowered >= search.simulated >= 1:
        yield f"search: {search.candidates} candidates, {search.lowered} lowered, {search.simulated} simulated"
    if search.gap >= 1:
        yield f"search.gap: {search.gap:.4g} must be below 1"
