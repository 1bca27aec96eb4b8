"""Explain: an allocation in plain words, from the file alone. Every number has a unit, a tag and a definition.

``explain`` writes the text; ``planner.exploring.flips`` simulates to find what would change a choice, and its answers
can be passed in. Words are defined once, in the text's last block (TERMS); a number's tag stands behind it, or at the
end of its sentence.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.exploring.flips import Flip
from planner.heads import useful_gpus
from planner.rivals import rule_pool
from planner.threshold import documents_threshold
from simulator.allocation import Allocation, Alternative, Choice, Interval, Switching
from simulator.units import format_figure, format_seconds

COMMUNICATION = ("network", "collective", "waiting")
TERMS = """\
terms
  step        one forward pass of the batch: prefill gives the time to the first token (TTFT), decode the time an output
              token (TPOT), in seconds; behind it, in brackets, its 90 % interval
  speed-up    the step of the base alone over ours; efficiency: speed-up over the ratio of GPUs, per cent
  causes      factors whose product is the speed-up: more GPUs, time not spent communicating, all else
  why         shares of the step on its critical path, per cent: attention, gemm (matrix products), experts, memory
              (element-wise kernels), network (sends), collective (all-reduce and the like), waiting (for a rank)
  rate        tokens of the step over its seconds; a GPU: over its GPUs too; GPU-hours: GPUs held times the step;
              J: every GPU held at its board's power limit (TDP) for the whole step, so no more than that
  front       no placement simulated is faster on as few GPUs (Pareto front of GPUs and step)
  runner-up   the best on other GPUs or another grid; behind: its objective over ours, less one, per cent
  flips       where the runner-up is better, if one quantity moves and all else stays: both are simulated again;
              GPU-seconds: GPUs held times seconds
  memory      weights, KV cache, activations and buffers of a rank; headroom: what its device has left; GB = 1e9 bytes
  proof       candidates: placements with a proved lower bound; simulated: those whose bound left them a chance;
              from optimal: (our step - the best bound left) / our step, per cent
  activation  what a batch waits that is given GPUs which the batch before it did not hold
  tags        [given] an input; [counted] exact, from the plan or the search; [fitted] predicted from a calibrated
              profile; [assumed] predicted, and also resting on what nobody measured (links between nodes)"""


def explain(allocation: Allocation, flips: Sequence[Flip] = ()) -> str:
    """The whole text, ending in a newline."""
    blocks = [_head(allocation), *(_entry(choice, flips) for choice in allocation.policy), _thresholds(allocation)]
    if allocation.switching is not None:
        blocks.append(_switching(allocation.switching))
    return "\n\n".join((*blocks, TERMS)) + "\n"


def _head(allocation: Allocation) -> str:
    limits = allocation.limits
    base = f", {limits.base_gpus} GPUs as the base" if limits.base_gpus else ""
    return "\n".join(
        (
            f"{allocation.name}: {allocation.model} on {allocation.cluster} for {allocation.workload}",
            f"objective {allocation.objective}; at most {limits.max_gpus} GPUs{base} [given]; costs from "
            f"{allocation.profile}; words and tags are explained at the end",
        )
    )


def _entry(choice: Choice, flips: Sequence[Flip]) -> str:
    upper = "" if choice.max_tokens is None else f" to {choice.max_tokens - 1}"
    lines = [
        f"{choice.phase}, {choice.bucket}: prompts from {choice.min_tokens}{upper} tokens, planned at {choice.tokens} "
        f"tokens, {choice.batch} sequences at once [given]",
        f"  choice      {choice.placement.name}: {choice.num_gpus} GPUs, {choice.pool_gpus} GPUs of them only attend "
        "[counted]",
        f"  step        {shown(choice.metrics.step_s)}",
        f"  why         {_why(choice)}",
        f"  rate        {_rate(choice)}",
        *_speed_up(choice),
        f"  runner-up   {_runner_up(choice)}",
        f"  documents   {_rule(choice)}",
        *_heads(choice),
        f"  front       {_front(choice)}",
        f"  memory      {_memory(choice)}",
        f"  exactness   {choice.exactness}",
        f"  proof       {_proof(choice)}",
    ]
    own = [flip for flip in flips if (flip.phase, flip.bucket) == (choice.phase, choice.bucket)]
    lines.extend(f"  flips       {flip.sentence}" for flip in own)
    return "\n".join(lines)


def shown(interval: Interval) -> str:
    """``36.2 ms (34.1 ms to 39.0 ms) [fitted]``."""
    low, high = format_seconds(interval.p05), format_seconds(interval.p95)
    return f"{format_seconds(interval.value)} ({low} to {high}) [{interval.tag}]"


def _why(choice: Choice) -> str:
    shares = sorted(choice.binding.shares.items(), key=lambda item: (-item[1], item[0]))
    parts = ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005)
    return f"bound by {choice.binding.kind}; of the time on the critical path: {parts} [{choice.metrics.step_s.tag}]"


def _rate(choice: Choice) -> str:
    """What the step yields, and what it takes a token."""
    metrics = choice.metrics
    what = "prompt" if choice.phase == "prefill" else "output"
    hours = metrics.gpu_seconds_per_token.value * 1e6 / 3600
    energy = metrics.joules_per_token
    joules = (
        "energy unknown (no power_w)"
        if energy is None
        else f"at most {format_figure(energy.value)} J a token [{energy.tag}]"
    )
    rate, each = format_figure(metrics.tokens_per_s.value), format_figure(metrics.tokens_per_s_per_gpu.value)
    return (
        f"{rate} tokens/s of {what}, {each} tokens/s a GPU, {format_figure(hours)} GPU-hours a million tokens "
        f"[{metrics.tokens_per_s.tag}]; {joules}"
    )


def _front(choice: Choice) -> str:
    """The Pareto front of GPUs and step."""
    points = [f"{point.num_gpus} GPUs {format_seconds(point.step_s)} ({point.name})" for point in choice.pareto]
    return f"{', '.join(points)} [{choice.metrics.step_s.tag}]"


def _speed_up(choice: Choice) -> list[str]:
    """Against the base alone, as a product: GPUs × time not communicating × the rest. Flash attention is in both."""
    base = choice.baselines[0] if choice.baselines else None
    if base is None or base.step_s is None:
        return [f"  speed-up    none stated: {base.infeasible if base else 'no baseline'} [counted]"]
    tag, gain = choice.metrics.step_s.tag, base.step_s.value / choice.metrics.step_s.value
    ratio = choice.num_gpus / base.num_gpus
    talking = sum(choice.binding.shares.get(kind, 0.0) for kind in COMMUNICATION)
    rest = gain / ratio / (1 - talking) if talking < 1 else 0.0
    return [
        f"  speed-up    {gain:.2f}x over {base.name} ({shown(base.step_s)}), efficiency {gain / ratio:.0%} [{tag}]",
        f"  causes      GPUs {ratio:.2f}x, communication {1 - talking:.2f}x, kernels and balance {rest:.2f}x, "
        f"flash attention 1.00x (in both) [{tag}]",
    ]


def _runner_up(choice: Choice) -> str:
    second, margin = choice.runner_up, choice.margin
    if second is None or second.step_s is None or margin is None:
        return "none: no other candidate was worth simulating"
    text = f"{second.name} on {second.num_gpus} GPUs [counted], {shown(second.step_s)}"
    behind = f"{margin.value:.1%} behind ({margin.p05:.1%} to {margin.p95:.1%}) [{margin.tag}]"
    close = "; too close to call: measure both" if choice.too_close_to_call else ""
    return f"{text}; {behind}{close}"


def _rule(choice: Choice) -> str:
    """The documents' fixed rule at this length."""
    return f"their rule takes {rule_pool(choice.tokens)} pool GPUs [given]: {_beside(choice.rule, choice)}"


def _beside(rival: Alternative, choice: Choice) -> str:
    if rival.infeasible is not None:
        return f"not possible here ({rival.infeasible}) [counted]"
    if rival.step_s is not None:
        ratio = rival.step_s.value / choice.metrics.step_s.value
        return f"{shown(rival.step_s)}, {ratio:.2f}x our step [{rival.step_s.tag}]"
    assert rival.bound_s is not None
    ratio = rival.bound_s / choice.metrics.step_s.value
    return f"at least {format_seconds(rival.bound_s)} (proved bound), {ratio:.2f}x our step or more [fitted]"


def _heads(choice: Choice) -> list[str]:
    """How heads are dealt where they are unevenly, and GPUs that take heads without ending attention sooner."""
    lines = []
    for stage in choice.placement.stages[:1]:
        sizes = stage.grid.heads
        if len(set(sizes)) == 1:
            continue
        dealt = " + ".join(f"{sizes.count(size)} x {size}" for size in sorted(set(sizes), reverse=True))
        fewest = useful_gpus(sum(sizes), len(sizes))
        spare = len(sizes) - fewest
        text = f"  heads       {sum(sizes)} heads over {len(sizes)} head groups: {dealt} heads [counted]"
        if spare and max(sizes) == -(-sum(sizes) // len(sizes)):
            text += f"; {spare} groups bring attention nothing: {fewest} groups finish as soon on equal GPUs [counted]"
        lines.append(text)
    return lines


def _memory(choice: Choice) -> str:
    tightest = min(choice.memory, key=lambda row: (row.headroom_bytes, row.rank))
    used = tightest.capacity_bytes - tightest.headroom_bytes
    return (
        f"fullest is rank {tightest.rank}: {used / 1e9:.2f} GB of {tightest.capacity_bytes / 1e9:.2f} GB, "
        f"headroom {tightest.headroom_bytes / 1e9:+.2f} GB [fitted]"
    )


def _proof(choice: Choice) -> str:
    search = choice.search
    gap = "optimal for the simulator" if search.gap == 0 else f"at most {search.gap:.1%} from optimal [fitted]"
    return f"{search.candidates} candidates bounded, {search.simulated} simulated [counted]: {gap}"


def _thresholds(allocation: Allocation) -> str:
    lines = ["thresholds (lengths at which a pool first pays; results, not inputs)"]
    for threshold in allocation.thresholds:
        chosen = "never" if threshold.tokens is None else f"from {threshold.tokens} tokens"
        beats = "never" if threshold.pool_tokens is None else f"from {threshold.pool_tokens} tokens"
        lines.append(f"  {threshold.phase:<9} a pool is chosen {chosen}; it beats the base alone {beats} [fitted]")
    lines.append(
        f"  documents 4096 tokens by their rule, {documents_threshold()} tokens by their formula with 35 ms, 45 ms "
        "and 8 ms [assumed]"
    )
    return "\n".join(lines)


def _switching(switching: Switching) -> str:
    """What the policy's placements cost together."""
    tightest = min(switching.residents, key=lambda row: (row.headroom_bytes, row.rank))
    cost, whole, unit = switching.switching_cost, switching.policy_cost, switching.unit
    gap = "as if every bucket were alone" if switching.gap == 0 else f"{switching.gap:.3%} more than each bucket alone"
    waits = f"{switching.probability:.1%} of batches are given GPUs that the one before did not hold"
    lines = (
        "switching (the placements of all buckets side by side, every rank with the weights of all that use it)",
        f"  activation  {waits} and wait {format_seconds(switching.activation_s)} [{switching.activation_tag}]",
        f"  cost        {cost:.4g} {unit} in {whole:.4g} {unit}, the mean over the workload: {gap} [assumed]",
        f"  memory      fullest is rank {tightest.rank}: {tightest.weights_bytes / 1e9:.2f} GB of weights, "
        f"headroom {tightest.headroom_bytes / 1e9:+.2f} GB [fitted]",
        f"  given up    {', '.join(switching.moved) or 'none'} (buckets whose own best is not in the policy)",
    )
    return "\n".join(lines)
