"""Resource manager: who holds which share of the attention pool, as a pure state machine.

``decide(state, event, rules)`` returns the next state and what was decided; it has no clock, no I/O and no memory of
its own, so the simulator and an executor can drive the same rules. As in the documents, the longest sequence of a
batch decides. Beyond them: hysteresis, costs, and several base groups that share one pool:

    hysteresis   in length: a held pool is kept down to (1 − band) × its threshold, and used;
                 in time: GPUs no longer asked for stay with their group, unused, for ``hold_s``
    cost         a batch that is given more GPUs starts ``activation_s`` later; GPUs given back are free
                 ``release_s`` later
    contention   first come, first served, and no overtaking. A group between two batches gives its GPUs up to the
                 first in line once it has had them for ``tenure_s``. Who cannot be served waits, or falls back to
                 the largest size of its policy that is free.

What it ignores: which GPUs of the pool a group gets, and moving a decode's KV cache when its pool changes (give that
as ``activation_s``). Source: FA Pool documents, "Dynamic Resource Allocation Strategy"; they state no costs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from simulator.serving.pool_policy import PoolPolicy, PoolRules
from simulator.simulation.clock import picoseconds
from simulator.workload import Phase


@dataclass(frozen=True, slots=True)
class Lease:
    """A group's share. ``since_ps``: of its last growth; ``lower_since_ps``: since when it was asked for less."""

    pool_gpus: int = 0
    since_ps: int = 0
    lower_since_ps: int | None = None
    running: bool = False


@dataclass(frozen=True, slots=True)
class Waiter:
    """A batch that cannot start: its group holds fewer than ``want_gpus``."""

    group: int
    want_gpus: int


@dataclass(frozen=True, slots=True)
class PoolState:
    """Leases by group, GPUs on their way back as (instant, GPUs), and the line."""

    leases: tuple[Lease, ...]
    returning: tuple[tuple[int, int], ...] = ()
    line: tuple[Waiter, ...] = ()

    @property
    def held_gpus(self) -> int:
        """GPUs that cannot serve another group: leased or on their way back."""
        return sum(lease.pool_gpus for lease in self.leases) + sum(gpus for _, gpus in self.returning)


@dataclass(frozen=True, slots=True)
class BatchFormed:
    """A group is about to run a batch whose longest sequence has ``max_tokens``."""

    at_ps: int
    group: int
    phase: Phase
    max_tokens: int


@dataclass(frozen=True, slots=True)
class BatchEnded:
    """A group's batch is over."""

    at_ps: int
    group: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: due when ``next_ps`` says so, and when a group runs out of work."""

    at_ps: int


@dataclass(frozen=True, slots=True)
class Start:
    """A batch starts at ``ready_ps`` on ``pool_gpus`` of the ``held_gpus``; its policy asked for ``want_gpus``."""

    at_ps: int
    group: int
    pool_gpus: int
    held_gpus: int
    want_gpus: int
    ready_ps: int


@dataclass(frozen=True, slots=True)
class Activated:
    at_ps: int
    group: int
    before_gpus: int
    after_gpus: int
    ready_ps: int


@dataclass(frozen=True, slots=True)
class Released:
    """Given back, or taken for group ``to``; free again at ``free_ps``."""

    at_ps: int
    group: int
    before_gpus: int
    after_gpus: int
    free_ps: int
    to: int | None = None


@dataclass(frozen=True, slots=True)
class Queued:
    at_ps: int
    group: int
    want_gpus: int
    free_gpus: int


@dataclass(frozen=True, slots=True)
class FellBack:
    at_ps: int
    group: int
    want_gpus: int
    held_gpus: int


PoolEvent = BatchFormed | BatchEnded | Tick
Change = Activated | Released | Queued | FellBack
Decision = Start | Change


def idle_pool(rules: PoolRules) -> PoolState:
    """Nobody holds anything."""
    return PoolState((Lease(),) * rules.num_groups)


def decide(state: PoolState, event: PoolEvent, rules: PoolRules) -> tuple[PoolState, tuple[Decision, ...]]:
    """The manager's answer to one event. Events must come in the order of time."""
    turn = _Turn(event.at_ps, rules, list(state.leases), list(state.returning), list(state.line))
    turn.returning = [entry for entry in turn.returning if entry[0] > turn.now_ps]
    match event:
        case BatchFormed():
            turn.formed(event)
        case BatchEnded(group=group):
            lease = turn.leases[group]
            assert lease.running, f"group {group} runs nothing"
            since_ps = turn.now_ps if lease.lower_since_ps is None else lease.lower_since_ps
            turn.leases[group] = replace(lease, running=False, lower_since_ps=since_ps)
        case Tick():
            turn.expire()
    turn.serve_line()
    return PoolState(tuple(turn.leases), tuple(turn.returning), tuple(turn.line)), tuple(turn.decisions)


def next_ps(state: PoolState, now_ps: int, rules: PoolRules) -> int | None:
    """The next instant after ``now_ps`` at which a Tick may change something; None: only events can."""
    due = [instant for instant, _ in state.returning]
    for lease in state.leases:
        if lease.pool_gpus and not lease.running:
            if lease.lower_since_ps is not None:
                due.append(lease.lower_since_ps + picoseconds(rules.hold_s))
            if state.line:
                due.append(lease.since_ps + picoseconds(rules.tenure_s))
    return min((instant for instant in due if instant > now_ps), default=None)


@dataclass(slots=True)
class _Turn:
    """A state being changed by one event."""

    now_ps: int
    rules: PoolRules
    leases: list[Lease]
    returning: list[tuple[int, int]]
    line: list[Waiter]
    decisions: list[Decision] = field(default_factory=list)

    @property
    def free_gpus(self) -> int:
        leased = sum(lease.pool_gpus for lease in self.leases)
        return self.rules.pool_gpus - leased - sum(gpus for _, gpus in self.returning)

    def formed(self, event: BatchFormed) -> None:
        lease, policy = self.leases[event.group], self.rules.policy(event.phase)
        assert not lease.running, f"group {event.group} already runs a batch"
        want = policy.fitting_gpus(min(policy.pool_gpus(event.max_tokens), self.rules.pool_gpus))
        if lease.pool_gpus < want:
            self._grow(event.group, want, policy)
            return
        kept = policy.kept_gpus(event.max_tokens, self.rules.band)
        self._shrink(event.group, kept)
        held = self.leases[event.group].pool_gpus
        self._start(event.group, policy.fitting_gpus(min(held, kept)), want, self.now_ps)

    def expire(self) -> None:
        """Groups without a batch give back what they have held for long enough."""
        waiting = {waiter.group for waiter in self.line}
        for group, lease in enumerate(self.leases):
            if not lease.running and group not in waiting:
                self._shrink(group, 0)

    def serve_line(self) -> None:
        """Give the first in line its GPUs, then the next; stop at the first that cannot be served."""
        while self.line:
            waiter = self.line[0]
            if not self._find(waiter):
                return
            self.line.pop(0)
            self._give(waiter.group, waiter.want_gpus, waiter.want_gpus)

    def _grow(self, group: int, want: int, policy: PoolPolicy) -> None:
        """Join the line; if that does not start the batch, wait in it or take what there is."""
        waiter = Waiter(group, want)
        self.leases[group] = replace(self.leases[group], lower_since_ps=None)
        self.line.append(waiter)
        self.serve_line()
        if waiter not in self.line:
            return
        if self.rules.contention == "wait":
            self.decisions.append(Queued(self.now_ps, group, want, self.free_gpus))
            return
        self.line.remove(waiter)
        held = self.leases[group].pool_gpus
        some = max(held, policy.fitting_gpus(held + self.free_gpus))
        self.decisions.append(FellBack(self.now_ps, group, want, some))
        self._give(group, some, want)

    def _find(self, waiter: Waiter) -> bool:
        """Are the missing GPUs free? Takes them from groups between batches, longest lease first, if not."""
        missing = waiter.want_gpus - self.leases[waiter.group].pool_gpus
        tenure_ps = picoseconds(self.rules.tenure_s)
        donors = sorted(
            (lease.since_ps, group)
            for group, lease in enumerate(self.leases)
            if lease.pool_gpus and not lease.running and group != waiter.group
            if self.now_ps >= lease.since_ps + tenure_ps
        )
        for _, group in donors:
            if missing <= self.free_gpus + sum(gpus for _, gpus in self.returning):
                break
            self._release(group, 0, to=waiter.group)
        return missing <= self.free_gpus

    def _give(self, group: int, pool_gpus: int, want: int) -> None:
        lease, ready_ps = self.leases[group], self.now_ps
        if pool_gpus > lease.pool_gpus:
            ready_ps += picoseconds(self.rules.activation_s)
            self.decisions.append(Activated(self.now_ps, group, lease.pool_gpus, pool_gpus, ready_ps))
            self.leases[group] = replace(lease, pool_gpus=pool_gpus, since_ps=self.now_ps)
        self._start(group, pool_gpus, want, ready_ps)

    def _start(self, group: int, pool_gpus: int, want: int, ready_ps: int) -> None:
        lease = self.leases[group] = replace(self.leases[group], running=True)
        self.decisions.append(Start(self.now_ps, group, pool_gpus, lease.pool_gpus, want, ready_ps))

    def _shrink(self, group: int, kept: int) -> None:
        """Give back what exceeds ``kept``, once it has for ``hold_s``."""
        lease = self.leases[group]
        if lease.pool_gpus <= kept:
            self.leases[group] = replace(lease, lower_since_ps=None)
            return
        since_ps = self.now_ps if lease.lower_since_ps is None else lease.lower_since_ps
        self.leases[group] = replace(lease, lower_since_ps=since_ps)
        if self.now_ps >= since_ps + picoseconds(self.rules.hold_s):
            self._release(group, kept)

    def _release(self, group: int, after: int, to: int | None = None) -> None:
        lease = self.leases[group]
        free_ps = self.now_ps + picoseconds(self.rules.release_s)
        self.decisions.append(Released(self.now_ps, group, lease.pool_gpus, after, free_ps, to))
        if free_ps > self.now_ps:
            self.returning.append((free_ps, lease.pool_gpus - after))
        self.leases[group] = replace(lease, pool_gpus=after, lower_since_ps=None)
