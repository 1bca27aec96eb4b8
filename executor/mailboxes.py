"""Mailboxes: every rank of a program in one process, taking turns, with transfers handed over in memory.

Each rank is a thread, but only the one whose turn it is runs: it keeps the device until it waits for a value that is
not there yet, then the next rank that can go on does. Order and results are the same every time.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from executor.transfers import Issued, combined, padded
from simulator import program as p
from simulator.errors import ExecutionError


@dataclass
class Post:
    """Everything under way between the ranks."""

    messages: dict[tuple[int, int, int], deque[Tensor]] = field(default_factory=lambda: defaultdict(deque))
    collectives: dict[tuple[int, tuple[int, ...]], dict[int, Tensor]] = field(default_factory=lambda: defaultdict(dict))


class Turns:
    """Passes the one turn round the ranks."""

    def __init__(self, num_ranks: int) -> None:
        self._ready: list[Callable[[], bool] | None] = [lambda: True] * num_ranks
        self._waits_for = [""] * num_ranks
        self._turn = [threading.Semaphore(0) for _ in range(num_ranks)]
        self._back = threading.Semaphore(0)
        self._failure: BaseException | None = None

    def wait(self, rank: int, ready: Callable[[], bool], what: str) -> None:
        """Called by the running rank: give the turn away until ``ready``."""
        if ready():
            return
        self._ready[rank], self._waits_for[rank] = ready, what
        self._back.release()
        self._turn[rank].acquire()
        if self._failure is not None:
            raise ExecutionError("stopped: another rank failed")

    def run(self, bodies: Sequence[Callable[[], None]]) -> None:
        """Run every rank's body to its end. Raises what a rank raised, or ExecutionError on a deadlock."""
        threads = [
            threading.Thread(target=self._body, args=(rank, body), daemon=True) for rank, body in enumerate(bodies)
        ]
        for thread in threads:
            thread.start()
        while any(ready is not None for ready in self._ready) and self._failure is None:
            self._give_turn()
        for rank, ready in enumerate(self._ready):
            if ready is not None:
                self._turn[rank].release()
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise self._failure

    def _give_turn(self) -> None:
        """Let every rank that can go on do so once, in order."""
        moved = False
        for rank, ready in enumerate(self._ready):
            if ready is not None and self._failure is None and ready():
                moved = True
                self._turn[rank].release()
                self._back.acquire()
        if not moved and self._failure is None:
            stuck = "; ".join(f"rank {rank} waits for {what}" for rank, what in enumerate(self._waits_for) if what)
            self._failure = ExecutionError(f"deadlock: {stuck}")

    def _body(self, rank: int, body: Callable[[], None]) -> None:
        self._turn[rank].acquire()
        try:
            if self._failure is None:
                body()
        except BaseException as error:
            self._failure = self._failure or error
        finally:
            self._ready[rank], self._waits_for[rank] = None, ""
            self._back.release()


@dataclass
class _Letter:
    """A value that arrives when ``ready`` says so."""

    turns: Turns
    rank: int
    ready: Callable[[], bool]
    take: Callable[[], Tensor]
    what: str

    def wait(self) -> Tensor:
        self.turns.wait(self.rank, self.ready, self.what)
        return self.take()


class MailboxTransport:
    """One rank's transfers through the post."""

    def __init__(self, rank: int, post: Post, turns: Turns) -> None:
        self.rank, self.post, self.turns = rank, post, turns
        self.issued = Issued()

    def begin(self, operations: Sequence[p.Operation]) -> None:
        self.issued = Issued()

    def send(self, operation: p.Send, value: Tensor) -> None:
        self.issued.send(value)
        self.post.messages[self.rank, operation.to, operation.tag].append(value.contiguous())

    def receive(self, operation: p.Recv) -> _Letter:
        box = self.post.messages[operation.source, self.rank, operation.tag]
        what = f"tag {operation.tag} from rank {operation.source}"
        return _Letter(self.turns, self.rank, lambda: bool(box), box.popleft, what)

    def collective(self, operation: p.Collective, value: Tensor | None) -> _Letter:
        assert value is not None or operation.kind == "broadcast"
        key = (operation.tag, operation.ranks)
        values = self.post.collectives[key]
        if value is not None:
            value = padded(operation, value)
            self.issued.collective(operation, value)
            values[self.rank] = value
        needed = operation.ranks[:1] if operation.kind == "broadcast" else operation.ranks
        place = operation.ranks.index(self.rank)

        def take() -> Tensor:
            return combined(operation, [values[rank] for rank in needed], place)

        what = f"{operation.kind} {operation.tag} of ranks {list(operation.ranks)}"
        return _Letter(self.turns, self.rank, lambda: all(rank in values for rank in needed), take, what)

    def finish(self) -> None:
        pass
