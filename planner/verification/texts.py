"""Verify the words of an allocation: names say what the placements are, sentences what the numbers are.

Names are spelled out again from the placements, the critical path's sentence from its shares, the command word by word
from limits and sources. What cannot be found again: why lowering refused a rival, in words of its own.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from math import isclose
from pathlib import PurePath

from planner.verification.choice import Inputs
from simulator.allocation import Alternative, Choice
from simulator.placement import Placement

ANY = re.compile(r"-dealt(_kv)?|-o\d+")  # how heads were dealt and which nodes came first: the ranks and heads say it
TAIL = r"(-contiguous|-zigzag|-sqrt)?(-tree|-chain)?(-ring)?(-s[2-9])?(-dealt|-dealt_kv)?(-mb[2-9])?(-o[1-9]\d?)?"
FORMS: tuple[tuple[str, Callable[..., int | None]], ...] = (
    (r"tp(\d{1,6})-pp(\d{1,6})", lambda tensor, stages: tensor * stages),
    (r"tp(\d{1,6})-cp(\d{1,6})", lambda tensor, replicas: tensor * replicas),
    (r"rule-base(\d{1,6})-pool(\d{1,6})", lambda base, pool: base + pool),
    (
        r"base(\d{1,6})-pool(\d{1,6})-h(\d{1,6})q(\d{1,6})k(\d{1,6})",
        lambda base, n, h, q, k: base + n if n == h * q * k else None,
    ),
    (
        r"base(\d{1,6})\+pool(\d{1,6})-h(\d{1,6})q(\d{1,6})k(\d{1,6})",
        lambda base, n, h, q, k: base + n if base + n == h * q * k else None,
    ),
    (r"ma(\d{1,6})-(\d{1,6})(?:-all_reduce)?", lambda attention, experts: attention + experts),
    (
        r"two-level-h(\d{1,6})d(\d{1,6})-(?:gather_qk|all_to_all|score_sum|per_slice)",
        lambda heads, slices: heads * slices,
    ),
)


def check_texts(inputs: Inputs) -> Iterator[str]:
    """Of the file as a whole, one line a fault."""
    allocation = inputs.allocation
    expected = (*inputs.cluster.assumptions, *inputs.workload.assumptions)
    if allocation.assumptions != expected:
        yield f"assumptions: {len(allocation.assumptions)} given; the cluster's and the workload's are {len(expected)}"
    if allocation.profile != PurePath(allocation.sources.profile).stem:
        yield f"profile: {allocation.profile!r}; its source is {allocation.sources.profile!r}"
    yield from _command(inputs)
    for number, choice in enumerate(allocation.policy):
        yield from (f"policy[{number}].{fault}" for fault in _choice(inputs, choice))


def _command(inputs: Inputs) -> Iterator[str]:
    """Either ``plan make SCENARIO``, or every part with every limit."""
    allocation, limits = inputs.allocation, inputs.allocation.limits
    try:
        words = shlex.split(allocation.command)
    except ValueError as error:
        yield f"command: {allocation.command!r}: {error}"
        return
    if words[:2] != ["plan", "make"]:
        yield f"command: {allocation.command!r} must begin with 'plan make'"
        return
    if len(words) == 3:
        if words[2] != allocation.name:
            yield f"command: makes {words[2]!r}; this is {allocation.name!r}"
        return
    given = {word: words[at + 1] for at, word in enumerate(words[:-1]) if word.startswith("--")}
    sources = allocation.sources
    for name in ("model", "cluster", "workload", "profile"):
        if given.get(f"--{name}") != getattr(sources, name):
            yield f"command: --{name} {given.get(f'--{name}')}; the source is {getattr(sources, name)!r}"
    if given.get("--objective") != allocation.objective:
        yield f"command: --objective {given.get('--objective')}; the objective is {allocation.objective!r}"
    numbers = {
        "--max-gpus": limits.max_gpus, "--base-gpus": limits.base_gpus, "--ttft-slo": limits.ttft_slo_s,
        "--tpot-slo": limits.tpot_slo_s, "--activation": limits.activation_s,
    }  # fmt: skip
    for flag, number in numbers.items():
        stated = given.get(flag)
        implied = flag == "--max-gpus" and stated is None and number == inputs.num_ranks
        if not implied and not _same(stated, number):
            yield f"command: {flag} {stated}; the limit is {number}"
    for flag, word, usual in (
        ("--slo-quantile", limits.slo_quantile, "median"),
        ("--exactness", limits.exactness, "drops-possible"),
    ):
        if given.get(flag, usual) != word:
            yield f"command: {flag} {given.get(flag, usual)}; the limit is {word!r}"


def _same(stated: str | None, number: float | None) -> bool:
    """Numbers are written with six digits."""
    if stated is None or number is None:
        return stated is None and number is None
    return bool(re.fullmatch(r"\d{1,20}(\.\d{1,9})?(e[+-]\d{1,3})?", stated)) and isclose(
        float(stated), number, rel_tol=1e-5, abs_tol=1e-12
    )


def _choice(inputs: Inputs, choice: Choice) -> Iterator[str]:
    yield from _name("placement.name", choice.placement.name, choice.placement)
    shares = sorted(choice.binding.shares.items(), key=lambda item: -item[1])
    detail = "critical path: " + ", ".join(f"{name} {share:.0%}" for name, share in shares)
    if choice.binding.detail != detail:
        yield f"binding.detail: {choice.binding.detail!r}; the shares say {detail!r}"
    rivals = {"rule": choice.rule, "runner_up": choice.runner_up, "best_pool": choice.best_pool}
    rivals |= {f"baselines[{number}]": rival for number, rival in enumerate(choice.baselines)}
    for place, rival in rivals.items():
        if rival is not None:
            yield from (f"{place}.{fault}" for fault in _rival(inputs, rival))
    for number, point in enumerate(choice.pareto):
        if gpus_of(point.name) != point.num_gpus:
            yield f"pareto[{number}].name: {point.name!r} is on {gpus_of(point.name)} GPUs, not {point.num_gpus}"
        ours = point.num_gpus == choice.num_gpus and point.step_s == choice.metrics.step_s.value
        if ours and not _alike(point.name, choice.placement):
            yield f"pareto[{number}].name: {point.name!r}; the choice's point is {choice.placement.name!r}"


def _rival(inputs: Inputs, rival: Alternative) -> Iterator[str]:
    if rival.placement is not None:
        if rival.name != rival.placement.name:
            yield f"name: {rival.name!r}; its placement is {rival.placement.name!r}"
        yield from _name("name", rival.name, rival.placement)
    elif rival.infeasible not in _reasons(inputs, rival):
        yield f"infeasible: {rival.infeasible!r}; it may be {_reasons(inputs, rival)}"
    lacks = re.fullmatch(r"rank (\d{1,6}) lacks \d+ bytes", rival.infeasible or "")
    if lacks and rival.placement is not None and int(lacks[1]) not in rival.placement.ranks:
        yield f"infeasible: {rival.infeasible!r}; {rival.name} does not use that rank"


def _reasons(inputs: Inputs, rival: Alternative) -> tuple[str, ...]:
    """Why a rival has no placement at all: GPUs, layers or heads."""
    model, base = inputs.model, inputs.allocation.limits.base_gpus or min(8, inputs.allocation.limits.max_gpus)
    return (
        f"{rival.name}: needs {gpus_of(rival.name)} GPUs; {inputs.allocation.limits.max_gpus} are allowed",
        f"{rival.name}: the model has {len(model.layers)} layers and too few heads or layers",
        f"{rival.name}: {base} tensor shards of {model.num_attention_heads} heads",
    )


def _name(place: str, name: str, placement: Placement) -> Iterator[str]:
    if name.startswith("rule-"):
        base = len(placement.stages[0].feed_forward_ranks)
        if name != f"rule-base{base}-pool{len(placement.pool_ranks)}":
            yield f"{place}: {name!r}; a base of {base} and a pool of {len(placement.pool_ranks)}"
    elif not _alike(name, placement):
        yield f"{place}: {name!r}; the placement is {spelled(placement)!r}"


def _alike(name: str, placement: Placement) -> bool:
    return ANY.sub("", name) == spelled(placement)


def gpus_of(name: str) -> int | None:
    """GPUs that a placement of this name is on; None where no placement has such a name."""
    for form, count in FORMS:
        found = re.fullmatch(f"{form}{TAIL}", name)
        if found:
            return count(*(int(word) for word in found.groups() if word is not None and word.isdigit()))
    return None


def spelled(placement: Placement) -> str:
    """A placement's name, from what it is."""
    stage, grid = placement.stages[0], placement.stages[0].grid
    tensor, cells = stage.tensor_degree, f"h{len(grid.heads)}q{grid.query_blocks}k{grid.kv_blocks}"
    if grid.dim_slices > 1:
        name = f"two-level-h{len(grid.heads)}d{grid.dim_slices}-{placement.dim_mode}"
    elif stage.projections == "attention":
        name = f"ma{len(grid.heads)}-{len(stage.feed_forward_ranks)}"
        name += "-all_reduce" if placement.exit == "all_reduce_broadcast" else ""
    elif set(stage.attention_ranks) == set(stage.feed_forward_ranks):
        replicas = len(stage.feed_forward_ranks) // tensor
        name = f"tp{tensor}-cp{replicas}" if replicas > 1 else f"tp{tensor}-pp{len(placement.stages)}"
    else:
        joins = "+" if set(stage.feed_forward_ranks) <= set(stage.attention_ranks) else "-"
        name = f"base{tensor}{joins}pool{len(placement.pool_ranks)}-{cells}"
    name += f"-{placement.block_rule}" if grid.query_blocks > 1 else ""
    name += f"-{placement.kv_multicast}" if placement.kv_multicast != "direct" else ""
    name += "-ring" * placement.kv_ring + f"-s{placement.kv_streams}" * (placement.kv_streams > 1)
    return name + f"-mb{placement.micro_batches}" * (placement.micro_batches > 1)
