"""Allocation: the plan, as a file. A policy (phase, length bucket → placement) with why, how sure, and from what.

Every predicted number is an ``Interval``: value, p05 and p95 in SI units, and a tag that says where it comes from
(``fitted``: a calibrated profile; ``assumed``: part of it lies outside the calibrated range or on assumed links).
What it leaves out: how the plan is executed (the executor lowers ``placement`` again: the same program).
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from simulator.formats.files import Name, Record, to_json
from simulator.placement import Placement
from simulator.profile import Tag
from simulator.scenario import Objective
from simulator.workload import Phase

Exactness = Literal["exact", "model-changing", "drops-possible"]
BindingKind = Literal["compute", "attention", "network", "collective", "memory", "max_gpus", "slo"]
DTYPES = ("fp32", "fp16", "bf16", "fp8")


def _known_dtype(name: str) -> str:
    if name not in DTYPES:
        raise ValueError(f"unknown dtype; known: {', '.join(DTYPES)}")
    return name


class Interval(Record):
    """A predicted number with its 90 % interval. Units are in the field that holds it."""

    value: float
    p05: float
    p95: float
    tag: Tag

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        if not self.p05 <= self.value <= self.p95:
            raise ValueError(f"p05 {self.p05:.6g} ≤ value {self.value:.6g} ≤ p95 {self.p95:.6g} does not hold")
        return self


class Metrics(Record):
    """What a step takes and yields. Prefill: ttft_s is the step; decode: tpot_s is the step."""

    step_s: Interval
    ttft_s: Interval | None = Field(description="seconds to the first token of the batch; prefill only")
    tpot_s: Interval | None = Field(description="seconds an output token; decode only")
    tokens_per_s: Interval = Field(description="prefill: prompt tokens/s; decode: output tokens/s")
    tokens_per_s_per_gpu: Interval
    gpu_seconds_per_token: Interval
    joules_per_token: Interval | None = Field(
        default=None, description="at most: every GPU at its board's limit; None: a limit is unknown"
    )


class RankBytes(Record):
    """Bytes a rank needs while the policy's programs of this bucket run, and what its device has left (signed)."""

    rank: int = Field(ge=0)
    weights_bytes: int = Field(ge=0)
    kv_cache_bytes: int = Field(ge=0)
    activations_bytes: int = Field(ge=0)
    buffers_bytes: int = Field(ge=0)
    capacity_bytes: int = Field(gt=0)
    headroom_bytes: int

    @model_validator(mode="after")
    def _adds_up(self) -> RankBytes:
        used = self.weights_bytes + self.kv_cache_bytes + self.activations_bytes + self.buffers_bytes
        if self.capacity_bytes - used != self.headroom_bytes:
            raise ValueError(
                f"headroom_bytes {self.headroom_bytes} is not capacity − used {self.capacity_bytes - used}"
            )
        return self


class Binding(Record):
    """What the step's time is made of: the kind with the largest share, and the share of each on the critical path."""

    kind: BindingKind
    share: float = Field(ge=0, le=1, description="of the step's time")
    shares: dict[str, float]
    detail: str


class Alternative(Record):
    """A candidate that was not chosen. ``step_s`` None: never simulated, as it cannot be faster than ``bound_s``."""

    name: str
    placement: Placement | None
    num_gpus: int = Field(ge=0)
    pool_gpus: int = Field(ge=0)
    step_s: Interval | None
    bound_s: float | None = Field(default=None, description="proved lower bound of the step, seconds")
    infeasible: str | None = Field(default=None, description="why it cannot run here")

    @model_validator(mode="after")
    def _says_something(self) -> Alternative:
        if self.step_s is None and self.bound_s is None and self.infeasible is None:
            raise ValueError("needs step_s, bound_s or infeasible")
        return self


class ParetoPoint(Record):
    """The fastest candidate with at most this many GPUs."""

    num_gpus: int = Field(ge=1)
    step_s: float = Field(gt=0)
    name: str


class Search(Record):
    """How the choice was proved: candidates = bounded; the rest were simulated or lowered; gap 0 is exact."""

    candidates: int = Field(ge=0)
    lowered: int = Field(ge=0)
    simulated: int = Field(ge=0)
    gap: float = Field(ge=0, description="(incumbent − best remaining bound) / incumbent, 0: optimal")


class Choice(Record):
    """The placement of one phase and length bucket."""

    phase: Phase
    bucket: str
    min_tokens: int = Field(ge=0)
    max_tokens: int | None = Field(ge=1)
    tokens: int = Field(ge=1, description="prompt length that was simulated")
    batch: int = Field(ge=1)
    placement: Placement
    num_gpus: int = Field(ge=1)
    pool_gpus: int = Field(ge=0)
    metrics: Metrics
    memory: tuple[RankBytes, ...]
    binding: Binding
    exactness: Exactness
    runner_up: Alternative | None
    margin: Interval | None = Field(
        description="objective of the runner-up minus ours, over ours (shared errors cancel)"
    )
    too_close_to_call: bool
    rule: Alternative = Field(description="the documents' fixed rule: 0/8/16/24/32 pool GPUs from 4096 tokens")
    baselines: tuple[Alternative, ...]
    best_pool: Alternative | None = Field(description="the fastest FA Pool on the base, chosen or not")
    pareto: tuple[ParetoPoint, ...]
    search: Search


class Threshold(Record):
    """First bucket edge (tokens) at which the phase's chosen placement has a pool; None: never. A result, no input."""

    phase: Phase
    tokens: int | None
    pool_tokens: int | None = Field(
        description="first bucket edge at which some pool beats the base alone; None: never"
    )
    rule_tokens: int = Field(default=4096, description="the documents' fixed threshold")


class Digests(Record):
    """sha256 of every input's canonical JSON."""

    model: str
    cluster: str
    workload: str
    profiles: dict[str, str]


class Switching(Record):
    """What it takes to go from bucket to bucket: GPUs that join, weights that stay. Costs are a request's, in ``unit``,
    the mean over the workload; ``free_cost`` is every bucket's own best with activation free."""

    activation_s: float = Field(ge=0, description="what a batch waits that is given GPUs the one before did not hold")
    activation_tag: Tag = Field(default="assumed", description="nobody measured it, unless limits.activation_s was")
    probability: float = Field(ge=0, le=1, description="of such a batch; batches come independently, by bucket share")
    unit: str = Field(min_length=1)
    switching_cost: float = Field(ge=0, description="of policy_cost, the activations")
    policy_cost: float = Field(gt=0)
    free_cost: float = Field(gt=0)
    gap: float = Field(ge=0, lt=1, description="(policy_cost − free_cost) / policy_cost: what all together costs")
    moved: tuple[str, ...] = Field(default=(), description="buckets whose placements are not their own best")
    residents: tuple[RankBytes, ...] = Field(
        description="every rank's bytes with the weights of all the policy's placements resident, and the largest "
        "cache and activations of any"
    )


class Sources(Record):
    """Where each input was read: a preset's name or a path, as given."""

    model: str
    cluster: str
    workload: str
    profile: str


class Limits(Record):
    """The constraints the choice satisfies."""

    max_gpus: int = Field(ge=1)
    base_gpus: int | None = None
    ttft_slo_s: float | None = Field(default=None, gt=0)
    tpot_slo_s: float | None = Field(default=None, gt=0)
    slo_quantile: Literal["median", "p95"] = Field(
        default="median", description="which of the step's predicted values must meet its SLO"
    )
    activation_s: float | None = Field(
        default=None, ge=0, description="as measured; None: a control message there and back over the longest way"
    )
    exactness: Exactness = Field(
        default="drops-possible",
        description="what the plan may change: nothing, tokens that overflow capacity slots, or the model itself",
    )


class Allocation(Record):
    """An allocation file."""

    schema_version: Literal[1] = 1
    name: Name
    command: str = Field(description="makes this file again")
    objective: Objective
    limits: Limits
    model: str
    cluster: str
    workload: str
    profile: str
    dtype: Annotated[str, AfterValidator(_known_dtype)]
    policy: tuple[Choice, ...] = Field(min_length=1)
    thresholds: tuple[Threshold, ...]
    switching: Switching | None = Field(default=None, description="None: a file from before this was planned")
    sources: Sources
    digests: Digests
    assumptions: tuple[str, ...] = ()

    def choice(self, phase: Phase, tokens: int) -> Choice:
        """The entry for a phase and length. LookupError if no bucket holds it."""
        for entry in self.policy:
            inside = entry.min_tokens <= tokens and (entry.max_tokens is None or tokens < entry.max_tokens)
            if entry.phase == phase and inside:
                return entry
        raise LookupError(f"no {phase} entry of {self.name} holds {tokens} tokens")


def digest(record: BaseModel) -> str:
    """sha256 of the record's canonical JSON, in hex."""
    return hashlib.sha256(to_json(record).encode("utf-8")).hexdigest()
