"""Problem: a scenario with its parts loaded: what every planning function works on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, TypeVar

from planner.bounds.rates import Rates, make_rates
from planner.predicted import Predicted
from planner.space import Question
from simulator import presets, profile
from simulator.allocation import Exactness, Limits, Sources
from simulator.cluster import Cluster
from simulator.errors import ProfileError, SpecError
from simulator.fabric.copies import copies_on
from simulator.fabric.topology import Topology
from simulator.fold import Fold, folds
from simulator.memory import Footprint, footprint
from simulator.memory_ceiling import Ceiling, ceiling_of
from simulator.model import Model
from simulator.placement import Placement
from simulator.power import rank_power_w
from simulator.profile import Profile
from simulator.program import Program
from simulator.scenario import Objective, Scenario
from simulator.simulation.world import World, world_of
from simulator.workload import Bucket, Phase, Workload
from simulator.workspace import Machine

KEPT_FOOTPRINTS = 4
Found = TypeVar("Found")


@dataclass(frozen=True)
class Problem:
    """One planning question over a whole workload. ``profiles`` by GPU name."""

    name: str
    command: str
    model: Model
    cluster: Cluster
    workload: Workload
    profile_name: str
    profiles: Mapping[str, Profile]
    objective: Objective
    limits: Limits
    sources: Sources

    def __getstate__(self) -> dict[str, object]:
        """Only the fields: what is cached on the way (rates, collective prices) is made again where it arrives."""
        return {field.name: self.__dict__[field.name] for field in fields(self)}

    @property
    def dtype(self) -> str:
        """Activations' dtype: the weights', but bf16 over fp8 weights."""
        return "bf16" if self.model.weight_dtype == "fp8" else self.model.weight_dtype

    @cached_property
    def rates(self) -> Rates:
        return make_rates(self.cluster, self.profiles, self.dtype)

    @cached_property
    def world(self) -> World:
        """What every simulation of this problem runs on, so that candidates share the collectives' prices."""
        return world_of(self.profiles)

    @cached_property
    def predicted(self) -> Predicted:
        """``predict`` that remembers, so that candidates share their kernels' predictions."""
        return Predicted()

    @cached_property
    def _machine(self) -> Machine:
        """What ranks compute and receive on."""
        nodes = tuple(node for node, _, _ in self.cluster.rank_nodes())
        return Machine("gpu" if all(gpu.kind == "gpu" for gpu in self.cluster.gpus) else "cpu", nodes)

    @cached_property
    def rank_power_w(self) -> tuple[float, ...]:
        """Every rank's board limit, watts; SpecError where one is unknown."""
        return rank_power_w(self.cluster)

    @cached_property
    def _footprints(self) -> OrderedDict[int, tuple[Program, Footprint]]:
        return OrderedDict()

    def footprint(self, program: Program) -> Footprint:
        """A program's memory; the last KEPT_FOOTPRINTS are kept, as every prefill candidate shares GPUs with one decode
        program."""
        return _kept(self._footprints, program, partial(footprint, self.model, machine=self._machine))

    @cached_property
    def _ceilings(self) -> OrderedDict[int, tuple[Program, Ceiling]]:
        return OrderedDict()

    def ceiling(self, program: Program) -> Ceiling:
        """What no rank of a program needs more than, kept as footprints are."""
        return _kept(self._ceilings, program, partial(ceiling_of, self.model, machine=self._machine))

    @cached_property
    def _copies(self) -> dict[Fold, bool]:
        return {}

    @cached_property
    def _topology(self) -> Topology:
        return Topology(self.rates.cluster)

    def folds(self, placement: Placement, cache: Placement | None) -> Iterator[Fold]:
        """Ways to simulate a placement's like ranks once, that this cluster allows; the most saving first."""
        if self.world.interference or any(gpu.kind != "gpu" for gpu in self.cluster.gpus):
            return  # kernels then share what they run on
        for fold in folds(self.model, (placement,) if cache is None else (placement, cache)):
            if fold not in self._copies:
                self._copies[fold] = copies_on(fold, self._topology) is not None
            if self._copies[fold]:
                yield fold

    def question(self, phase: Phase, bucket: Bucket) -> Question:
        """A bucket's planning question in one phase."""
        batch = self.workload.prefill_batch if phase == "prefill" else self.workload.decode_batch
        return Question(
            self.model,
            self.cluster,
            phase,
            bucket.tokens,
            batch,
            self.limits.max_gpus,
            self.limits.base_gpus,
            model_changing=self.limits.exactness == "model-changing",
        )


def load_problem(
    scenario: Scenario,
    *,
    command: str = "",
    ttft_slo_s: float | None = None,
    tpot_slo_s: float | None = None,
    slo_quantile: Literal["median", "p95"] = "median",
    exactness: Exactness = "drops-possible",
) -> Problem:
    """The scenario's parts, read. SpecError where more GPUs are asked for than there are, or the model itself exceeds
    the exactness budget."""
    cluster, model = presets.cluster(scenario.cluster), presets.model(scenario.model)
    _refuse_impossible(scenario, cluster, model, exactness)
    limits = Limits(
        max_gpus=scenario.max_gpus or cluster.num_ranks,
        base_gpus=scenario.base_gpus,
        ttft_slo_s=ttft_slo_s,
        tpot_slo_s=tpot_slo_s,
        slo_quantile=slo_quantile,
        exactness=exactness,
    )
    main = profile.load_profile(scenario.profile)
    return Problem(
        name=scenario.name,
        command=command or f"plan make {scenario.name}",
        model=model,
        cluster=cluster,
        workload=presets.workload(scenario.workload),
        profile_name=Path(scenario.profile).stem,
        profiles=profiles_for(cluster, main),
        objective=scenario.objective,
        limits=limits,
        sources=Sources(
            model=scenario.model, cluster=scenario.cluster, workload=scenario.workload, profile=scenario.profile
        ),
    )


def _refuse_impossible(scenario: Scenario, cluster: Cluster, model: Model, exactness: Exactness) -> None:
    """SpecError for what is wrong before anything is searched."""
    for name, gpus in (("max_gpus", scenario.max_gpus), ("base_gpus", scenario.base_gpus)):
        if gpus is not None and gpus > cluster.num_ranks:
            raise SpecError(
                f"scenario {scenario.name}: {name} {gpus} exceeds the {cluster.num_ranks} of cluster {cluster.name}"
            )
    if scenario.objective == "joule":
        rank_power_w(cluster)
    if exactness == "exact" and model.experts is not None and model.experts.capacity_factor is not None:
        raise SpecError(
            f"model {model.name}: experts.capacity_factor {model.experts.capacity_factor:g} may drop tokens, which "
            "exactness 'exact' excludes; remove it or allow 'drops-possible'"
        )


def _kept(kept: OrderedDict[int, tuple[Program, Found]], program: Program, work: Callable[[Program], Found]) -> Found:
    """Worked out of a program once, while it is among the last KEPT_FOOTPRINTS."""
    if id(program) not in kept:
        kept[id(program)] = program, work(program)
    kept.move_to_end(id(program))
    while len(kept) > KEPT_FOOTPRINTS:
        kept.popitem(last=False)
    return kept[id(program)][1]


def profiles_for(cluster: Cluster, main: Profile) -> dict[str, Profile]:
    """``main`` for its GPU type; the shipped profile of the same name for any other type of a mixed cluster."""
    found: dict[str, Profile] = {}
    for name in dict.fromkeys(node.gpu for node in cluster.nodes):
        if name == main.gpu.name:
            found[name] = main
            continue
        other = next((p for p in map(profile.load_profile, profile.preset_names()) if p.gpu.name == name), None)
        if other is None:
            raise ProfileError(
                f"cluster {cluster.name}: profile {main.name} is of {main.gpu.name}, none shipped is of {name}; "
                f"make one on a {name} with `plan calibrate --device cuda`, or import one"
            )
        found[name] = other
    return found
