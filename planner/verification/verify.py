"""Verify: an allocation re-checked from its inputs, by arithmetic of its own.

It shares no code with the search: only the files' schemas. Every finding is one line: place, value, what it must be.
``verify`` checks the file as a whole and what crosses entries; ``verify_choice`` one entry; ``verify_memory`` bytes.
What it cannot check: that no better candidate exists (the gap says so, tests compare with brute force).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from planner.verification.choice import Inputs, check_choice
from planner.verification.memory import check_memory
from planner.verification.switching import check_switching
from planner.verification.texts import check_texts
from simulator.allocation import Allocation, Choice
from simulator.cluster import Cluster
from simulator.model import Model
from simulator.profile import Profile
from simulator.workload import Workload

DOCUMENTS_TOKENS = 4096


def verify(
    allocation: Allocation, *, model: Model, cluster: Cluster, workload: Workload, profiles: Mapping[str, Profile]
) -> tuple[str, ...]:
    """Every fault of an allocation, one line each; none: it holds."""
    inputs = Inputs(allocation, model, cluster, workload)
    found = [*_names(inputs), *_digests(inputs, profiles), *_limits(inputs), *_coverage(inputs)]
    for number, choice in enumerate(allocation.policy):
        place = f"policy[{number}]"
        found.extend(f"{place}.{fault}" for fault in check_choice(inputs, choice))
        other = next((c for c in allocation.policy if (c.bucket, c.phase) == (choice.bucket, "decode")), choice)
        found.extend(f"{place}.{fault}" for fault in check_memory(inputs, choice, other))
    found.extend(_thresholds(allocation))
    found.extend(check_switching(inputs))
    found.extend(check_texts(inputs))
    return tuple(found)


def _names(inputs: Inputs) -> Iterator[str]:
    allocation = inputs.allocation
    for what, expected in (
        ("model", inputs.model.name),
        ("cluster", inputs.cluster.name),
        ("workload", inputs.workload.name),
    ):
        if getattr(allocation, what) != expected:
            yield f"{what}: {getattr(allocation, what)!r}, but the input is {expected!r}"
    weights = inputs.model.weight_dtype
    expected = "bf16" if weights == "fp8" else weights
    if allocation.dtype != expected:
        yield f"dtype: {allocation.dtype!r}; a model of {weights} weights computes in {expected}"
    if not allocation.command.startswith("plan "):
        yield f"command: {allocation.command!r} does not reproduce anything; it must begin with 'plan '"


def _digests(inputs: Inputs, profiles: Mapping[str, Profile]) -> Iterator[str]:
    digests = inputs.allocation.digests
    for what, record in (("model", inputs.model), ("cluster", inputs.cluster), ("workload", inputs.workload)):
        if getattr(digests, what) != _sha256(record):
            yield f"digests.{what}: {getattr(digests, what)[:12]}… is not of the {what} given ({_sha256(record)[:12]}…)"
    used = {node.gpu for node in inputs.cluster.nodes}
    if set(digests.profiles) != used:
        yield f"digests.profiles: of {sorted(digests.profiles)}, but the cluster has {sorted(used)}"
    for name in sorted(used & set(digests.profiles)):
        if name not in profiles:
            yield f"digests.profiles.{name}: no such profile was given to check it against"
        elif digests.profiles[name] != _sha256(profiles[name]):
            yield f"digests.profiles.{name}: {digests.profiles[name][:12]}… is not of the profile given"


def _sha256(record: BaseModel) -> str:
    text = json.dumps(record.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"
    return hashlib.sha256(text.encode()).hexdigest()


def _limits(inputs: Inputs) -> Iterator[str]:
    limits, ranks = inputs.allocation.limits, sum(node.count * node.gpus for node in inputs.cluster.nodes)
    if limits.max_gpus > ranks:
        yield f"limits.max_gpus: {limits.max_gpus} exceeds the cluster's {ranks}"
    if limits.base_gpus is not None and limits.base_gpus > limits.max_gpus:
        yield f"limits.base_gpus: {limits.base_gpus} exceeds max_gpus {limits.max_gpus}"


def _coverage(inputs: Inputs) -> Iterator[str]:
    """Every bucket of the workload once a phase, with its edges, length and batch."""
    for phase in ("prefill", "decode"):
        entries = [choice for choice in inputs.allocation.policy if choice.phase == phase]
        batch = inputs.workload.prefill_batch if phase == "prefill" else inputs.workload.decode_batch
        names = [choice.bucket for choice in entries]
        expected = [bucket.name for bucket in inputs.workload.buckets]
        if sorted(names) != sorted(expected):
            yield f"policy: {phase} has entries for {names}; the workload has buckets {expected}"
        for choice in entries:
            bucket = next((b for b in inputs.workload.buckets if b.name == choice.bucket), None)
            if bucket is None:
                continue
            mine = (choice.min_tokens, choice.max_tokens, choice.tokens, choice.batch)
            theirs = (bucket.min_tokens, bucket.max_tokens, bucket.tokens, batch)
            if mine != theirs:
                yield f"policy: {phase} of {bucket.name}: (min, max, tokens, batch) {mine}; the workload says {theirs}"


def _thresholds(allocation: Allocation) -> Iterator[str]:
    phases = [threshold.phase for threshold in allocation.thresholds]
    if sorted(phases) != ["decode", "prefill"]:
        yield f"thresholds: for {phases}; one for prefill and one for decode are needed"
    for threshold in allocation.thresholds:
        place = f"thresholds.{threshold.phase}"
        entries = [choice for choice in allocation.policy if choice.phase == threshold.phase]
        first = min((choice.min_tokens for choice in entries if choice.pool_gpus), default=None)
        if threshold.tokens != first:
            yield f"{place}.tokens: {threshold.tokens}; the policy's first pool is at {first}"
        faster = min((choice.min_tokens for choice in entries if _pool_wins(choice)), default=None)
        if threshold.pool_tokens != faster:
            yield f"{place}.pool_tokens: {threshold.pool_tokens}; a pool first beats the base at {faster}"
        if threshold.rule_tokens != DOCUMENTS_TOKENS:
            yield f"{place}.rule_tokens: {threshold.rule_tokens}; the documents say {DOCUMENTS_TOKENS}"


def _pool_wins(choice: Choice) -> bool:
    base = choice.baselines[0].step_s if choice.baselines else None
    pool = choice.best_pool.step_s if choice.best_pool else None
    return base is not None and pool is not None and pool.value < base.value
