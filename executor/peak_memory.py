"""Peak memory: the bytes of tensors that a rank really holds, at most, while a generation runs.

On a GPU torch's caching allocator counts them (``torch.cuda.max_memory_allocated``). On a CPU torch's profiler reports
every allocation and release of its allocator, those inside an operator too, and the peak is that of their running sum.
What it ignores: memory that is not torch's (sockets, libraries' own packing buffers) and allocators' fragmentation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from executor.generate import hand_over, step_together
from executor.operations import forget_angles
from executor.session import Generation, Session, prompts_of
from executor.weights import Weights
from executor.worker import Worker
from executor.world import DistributedTransport

PASSES = 2  # through the generation: buffers of the cache are made in the first and kept


class Watch:
    """``with Watch(device) as watch``: afterwards ``held_bytes``, what was allocated in it and still lives, and
    ``peak_bytes``, the most that lived at once of what was allocated in it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.held_bytes = self.peak_bytes = 0

    def __enter__(self) -> Watch:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._profile.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.held_bytes = torch.cuda.memory_allocated(self.device) - self._before
            self.peak_bytes = torch.cuda.max_memory_allocated(self.device) - self._before
            return
        self._profile.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        recorded = self._profile.profiler
        assert recorded is not None
        assert recorded.kineto_results is not None
        changes = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
        for change in sorted(changes, key=lambda event: event.start_ns()):
            self.held_bytes += change.nbytes()  # type: ignore[attr-defined]
            self.peak_bytes = max(self.peak_bytes, self.held_bytes)


def peak_bytes(worker: Worker, generation: Generation) -> tuple[int, int]:
    """Job: (weights, peak) of this rank over every step of the generation; weights are made anew."""
    world = worker.world
    world.prepare(generation.programs)
    world.weights = None
    forget_angles()
    transport = DistributedTransport(world)
    with Watch(world.device) as made:
        weights = Weights(generation.source(), dtype=generation.programs[0].dtype, device=world.device)
        session = Session(generation, world.rank, transport, worker.progress, device=world.device, weights=weights)
    with Watch(world.device) as ran:
        for _ in range(PASSES):
            tokens: Tensor | None = torch.cat(prompts_of(generation)).to(world.device)
            for number in range(len(generation.programs)):
                _, result = step_together(worker, session, number, tokens)
                tokens = hand_over(worker, generation, number, result.tokens)
    return made.held_bytes, made.held_bytes + ran.peak_bytes
