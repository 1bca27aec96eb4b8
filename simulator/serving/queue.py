"""Serving: requests through the resource manager, prefill batches and continuous decode, on a clock of picoseconds.

Base groups are identical replicas and share one queue, first come, first served. Between two steps a group admits what
has arrived and fits, as one prefill step; otherwise it decodes one token of everything it runs. Every step asks the
resource manager for its share of the pool. A step's duration comes from a callable:

    step_time(phase, batch, tokens, pool_gpus) -> seconds
        prefill: ``batch`` prompts of ``tokens`` tokens; decode: the token number ``tokens`` (0-based) of ``batch``
        sequences. If ``Batching.padded``, a batch of unequal lengths is timed at its longest. Else a decode step,
        linear in each length, at their mean, rounded up. A prefill at the mean would miss the square in attention's
        work; the mean, over its prompts, of a batch all of that length has it, but misses what a few tokens more
        cost a matmul that few tokens do not fill: both fall short, so the larger one counts.

What it ignores: chunked prefill, preemption, prefix sharing, and separate prefill and decode groups. A prefill stalls
its group's decodes. Prefill yields the first output token, each decode step one more.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import simpy

from simulator.errors import InfeasibleError, ProfileError, SpecError
from simulator.formats.trace import Request
from simulator.serving.batch import Batch, Batching
from simulator.serving.pool_policy import PoolRules
from simulator.serving.resource_manager import (
    BatchEnded,
    BatchFormed,
    Change,
    PoolEvent,
    Queued,
    Start,
    Tick,
    decide,
    idle_pool,
    next_ps,
)
from simulator.serving.served import Served, Usage
from simulator.simulation.clock import Clock, picoseconds
from simulator.workload import Phase

StepTime = Callable[[Phase, int, int, int], float]
Process = Generator[simpy.Event, Any, None]
UNLIMITED = 2**62


def serve(
    requests: Sequence[Request], step_time: StepTime, batching: Batching, rules: PoolRules | None = None
) -> Served:
    """Every request to its last token. InfeasibleError if one exceeds the KV cache alone."""
    if not requests:
        raise SpecError("serving: no request; give at least one")
    for number, request in enumerate(requests):
        if request.prompt_tokens < 1 or request.output_tokens < 1 or request.arrival_s < 0:
            raise SpecError(f"serving: request {number} is {request}; needs ≥ 1 prompt and output token, arrival ≥ 0")
        size = request.prompt_tokens + request.output_tokens
        if batching.kv_capacity_tokens is not None and size > batching.kv_capacity_tokens:
            raise InfeasibleError(
                f"serving: request {number} needs {size} tokens of KV cache, a group has {batching.kv_capacity_tokens}"
            )
    return Run(requests, step_time, batching, rules or PoolRules()).play()


class Run:
    """The state of one run. ``max_burst``: decode steps taken as one event while nothing can intervene."""

    def __init__(
        self,
        requests: Sequence[Request],
        step_time: StepTime,
        batching: Batching,
        rules: PoolRules,
        max_burst: int = UNLIMITED,
    ) -> None:
        arrivals = [picoseconds(request.arrival_s) for request in requests]
        self.order = sorted(range(len(requests)), key=arrivals.__getitem__)
        self.requests, self.arrival_ps = requests, arrivals
        self.step_time, self.batching, self.rules, self.max_burst = step_time, batching, rules, max_burst
        self.clock = Clock()
        self.head = 0
        self.unfinished = len(requests)
        self.prefill_ps, self.first_ps, self.finish_ps, self.group = ([-1] * len(requests) for _ in range(4))
        self.known: dict[tuple[Phase, int, int, int], int] = {}
        self.pool = idle_pool(rules)
        self.ticks: set[int] = set()
        self.starts: dict[int, Start] = {}
        self.doors: dict[int, simpy.Event] = {}
        self.bursts: dict[int, tuple[list[int], simpy.Event]] = {}
        self.changes: list[Change] = []
        self.usage = Usage()
        self.counted_ps = 0

    def play(self) -> Served:
        for group in range(self.rules.num_groups):
            self.clock.process(self._group(group))
        self.clock.run()
        assert self.unfinished == 0, f"{self.unfinished} requests were lost"
        assert min(self.finish_ps) >= 0, "a request was finished twice, another never"
        return Served(
            arrival_ps=np.array(self.arrival_ps, dtype=np.int64),
            prefill_ps=np.array(self.prefill_ps, dtype=np.int64),
            first_token_ps=np.array(self.first_ps, dtype=np.int64),
            finish_ps=np.array(self.finish_ps, dtype=np.int64),
            prompt_tokens=np.array([request.prompt_tokens for request in self.requests], dtype=np.int64),
            output_tokens=np.array([request.output_tokens for request in self.requests], dtype=np.int64),
            group=np.array(self.group, dtype=np.int64),
            num_base_gpus=self.batching.base_gpus * self.rules.num_groups,
            pool_gpus=self.rules.pool_gpus,
            usage=self.usage,
            changes=tuple(self.changes),
        )

    def _group(self, group: int) -> Process:
        """A base group: prefill what can be admitted, else decode, else sleep until the next arrival."""
        running = Batch()
        while True:
            admitted = self._admit(running)
            if admitted:
                yield from self._prefill(group, running, admitted)
            elif running:
                yield from self._decode(group, running)
            else:
                self._tell(Tick(self.clock.now_ps))
                if self.head == len(self.order):
                    return
                yield self.clock.timeout(self.arrival_ps[self.order[self.head]] - self.clock.now_ps)

    def _admit(self, running: Batch) -> list[int]:
        """The next requests in the queue that fit, in order of arrival; the first that does not fit ends the batch."""
        room = min(self.batching.prefill_batch, self.batching.decode_batch - len(running))
        capacity = self.batching.kv_capacity_tokens
        space = UNLIMITED if capacity is None else capacity - running.kv_tokens
        admitted: list[int] = []
        while self.head < len(self.order) and len(admitted) < room:
            index = self.order[self.head]
            request = self.requests[index]
            space -= request.prompt_tokens + request.output_tokens
            if self.arrival_ps[index] > self.clock.now_ps or space < 0:
                break
            admitted.append(index)
            self.head += 1
        return admitted

    def _prefill(self, group: int, running: Batch, admitted: list[int]) -> Process:
        prompts = [self.requests[index].prompt_tokens for index in admitted]
        longest = max(prompts)
        yield from self._ask(BatchFormed(self.clock.now_ps, group, "prefill", longest))
        start = self.starts[group]
        duration_ps = self._prefill_ps(prompts, start.pool_gpus)
        for index in admitted:
            self.prefill_ps[index], self.group[index] = self.clock.now_ps, group
            self.first_ps[index] = self.clock.now_ps + duration_ps
        yield self.clock.timeout(duration_ps)
        for index in admitted:
            running.add(index, self.requests[index])
        self._end("prefill", group, running, start, duration_ps, 1)

    def _prefill_ps(self, prompts: list[int], pool_gpus: int) -> int:
        """Of a batch, ragged or padded: see the module's docstring."""

        def of(tokens: int) -> int:
            return self._duration_ps("prefill", len(prompts), tokens, pool_gpus)

        if self.batching.padded or min(prompts) == max(prompts):
            return of(max(prompts))
        uniform = sum(of(tokens) for tokens in prompts)
        return max(of(-(-sum(prompts) // len(prompts))), round(uniform / len(prompts)))

    def _decode(self, group: int, running: Batch) -> Process:
        longest = running.longest
        yield from self._ask(BatchFormed(self.clock.now_ps, group, "decode", longest))
        start = self.starts[group]
        limit = self._burst(group, running, longest, start)
        until_ps = self._until_ps(group, running)
        tokens = longest if self.batching.padded else running.mean
        began_ps = end_ps = self.clock.now_ps
        ends_ps: list[int] = []
        while not ends_ps or (len(ends_ps) < limit and end_ps < until_ps):
            end_ps += self._duration_ps("decode", len(running), tokens + len(ends_ps), start.pool_gpus)
            ends_ps.append(end_ps)
        num_steps = yield from self._play(group, ends_ps)
        running.steps += num_steps
        self._end("decode", group, running, start, self.clock.now_ps - began_ps, num_steps)

    def _play(self, group: int, ends_ps: list[int]) -> Generator[simpy.Event, Any, int]:
        """Until the last of these steps ends, or the one in which somebody queues for the pool; how many ended."""
        over = simpy.Event(self.clock)
        self.bursts[group] = (ends_ps, over)
        self._stop_after(group, len(ends_ps))
        num_steps: int = yield over
        del self.bursts[group]
        return num_steps

    def _stop_after(self, group: int, num_steps: int) -> None:
        ends_ps, over = self.bursts[group]

        def stop() -> None:
            if not over.triggered:
                over.succeed(num_steps)

        self.clock.after(ends_ps[num_steps - 1] - self.clock.now_ps, stop)

    def _cut_bursts(self) -> None:
        """Somebody queues: who runs several steps on a pool stops after one, as soon as its pool may be taken."""
        for group, (ends_ps, _) in self.bursts.items():
            num_steps = bisect_left(ends_ps, max(self.clock.now_ps, self._tenured_ps(group))) + 1
            if self.pool.leases[group].pool_gpus and num_steps < len(ends_ps):
                self._stop_after(group, num_steps)

    def _burst(self, group: int, running: Batch, longest: int, start: Start) -> int:
        """Decode steps in which the batch and its pool cannot change by themselves. One, if this group fell back and
        asks again, or if another may take the request that blocks the queue."""
        if start.held_gpus < start.want_gpus or (self.rules.num_groups > 1 and self._queue_waits(running)):
            return 1
        edge = self.rules.decode.steady_tokens(longest, self.rules.band)
        steady = UNLIMITED if edge is None else edge - longest
        return min(running.ends[0][0] - running.steps, steady, self.max_burst)

    def _queue_waits(self, running: Batch) -> bool:
        """A request has arrived, and only its KV cache keeps it out."""
        if self.head == len(self.order) or len(running) >= self.batching.decode_batch:
            return False
        request, capacity = self.requests[self.order[self.head]], self.batching.kv_capacity_tokens
        full = capacity is not None and running.kv_tokens + request.prompt_tokens + request.output_tokens > capacity
        return full and self.arrival_ps[self.order[self.head]] <= self.clock.now_ps

    def _until_ps(self, group: int, running: Batch) -> int:
        """No step begins at or after this instant without asking again: an arrival may be admitted, a hold end, the
        pool be taken by who is in line."""
        until_ps = UNLIMITED
        room = len(running) < self.batching.decode_batch and self.head < len(self.order)
        if room and not self._queue_waits(running):
            until_ps = self.arrival_ps[self.order[self.head]]
        lease = self.pool.leases[group]
        if lease.lower_since_ps is not None:
            until_ps = min(until_ps, lease.lower_since_ps + picoseconds(self.rules.hold_s))
        return min(until_ps, self._tenured_ps(group)) if self.pool.line and lease.pool_gpus else until_ps

    def _tenured_ps(self, group: int) -> int:
        return self.pool.leases[group].since_ps + picoseconds(self.rules.tenure_s)

    def _end(self, phase: Phase, group: int, running: Batch, start: Start, elapsed_ps: int, num_steps: int) -> None:
        """After a step (or several alike): count it, let finished requests go, tell the manager."""
        self.usage.add(phase, num_steps, elapsed_ps, self.batching.base_gpus, start.pool_gpus)
        self._tell(BatchEnded(self.clock.now_ps, group))
        for index in running.pop_finished(self.requests):
            self.finish_ps[index] = self.clock.now_ps
            self.unfinished -= 1

    def _ask(self, event: BatchFormed) -> Process:
        """Until the manager lets the batch start and its GPUs are active."""
        self.starts.pop(event.group, None)
        self._tell(event)
        if event.group not in self.starts:
            door = self.doors[event.group] = simpy.Event(self.clock)
            yield door
        start = self.starts[event.group]
        if start.ready_ps > self.clock.now_ps:
            yield self.clock.timeout(start.ready_ps - self.clock.now_ps)
        self.usage.stalled_ps += self.clock.now_ps - event.at_ps

    def _tell(self, event: PoolEvent) -> None:
        """Pass an event to the manager, act on its decisions, and see to it that it is woken."""
        if self.unfinished:
            self.usage.pool_held_gpu_ps += (self.clock.now_ps - self.counted_ps) * self.pool.held_gpus
            self.counted_ps = self.clock.now_ps
        self.pool, decisions = decide(self.pool, event, self.rules)
        for decision in decisions:
            if isinstance(decision, Start):
                self.starts[decision.group] = decision
                door = self.doors.pop(decision.group, None)
                if door is not None:
                    door.succeed()
                continue
            self.changes.append(decision)
            if isinstance(decision, Queued):
                self._cut_bursts()
        due_ps = next_ps(self.pool, self.clock.now_ps, self.rules)
        if due_ps is not None and due_ps not in self.ticks:
            self.ticks.add(due_ps)
            self.clock.after(due_ps - self.clock.now_ps, self._tick)

    def _tick(self) -> None:
        self.ticks.discard(self.clock.now_ps)
        self._tell(Tick(self.clock.now_ps))

    def _duration_ps(self, phase: Phase, batch: int, tokens: int, pool_gpus: int) -> int:
        key = (phase, batch, tokens, pool_gpus)
        duration_ps = self.known.get(key)
        if duration_ps is None:
            seconds = self.step_time(phase, batch, tokens, pool_gpus)
            if not 0 < seconds < 1e6:
                raise ProfileError(f"step_time{key} is {seconds} s; must be above 0 and below 1e6")
            duration_ps = self.known[key] = max(1, picoseconds(seconds))
        return duration_ps
