"""Mesh: a TCP connection between every two CPU ranks, served by the thread that computes.

A send hands its bytes to the kernel, which keeps up to ``SOCKET_BYTES`` of them under way; what it does not take goes
out when the rank next waits. What arrives stays in the kernel until the rank waits for a value. So no other thread ever
takes a core from a kernel: gloo's own threads for messages did, and span there whenever the rank that they serve was
interrupted inside a call (8 of 102 core-ms of a context-parallel step, and ranks that began 3 ms late).
Messages of one sender, channel and tag arrive in the order in which they were sent.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import struct
from collections import defaultdict, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import torch
from torch import Tensor

HEADER = struct.Struct("<qqq")  # channel, tag, bytes that follow
HELLO = struct.Struct("<qq")  # the listener's secret, the rank that connects
SOCKET_BYTES = 2**24  # of a connection, each way: several of a step's values
FORCE = {socket.SO_SNDBUF: 32, socket.SO_RCVBUF: 33}  # SO_…BUFFORCE: beyond the system's limit, for root (Linux)
CONNECT_LIMIT_S = 60.0

Key = tuple[int, int, int]
"""(sender, channel, tag)."""
Agree = Callable[[list[int]], list[list[int]]]
"""Every rank's numbers, by rank, from this rank's."""
Steps = Generator[Key, Tensor, Tensor]
"""What a transfer does: it asks for one message after another (its bytes, [n] uint8) and ends with its value."""


@dataclass
class Peer:
    """One connection: what waits to go out, and the frame that is coming in."""

    rank: int
    socket: socket.socket
    queued: deque[memoryview] = field(default_factory=deque)
    header: bytearray = field(default_factory=lambda: bytearray(HEADER.size))
    coming: memoryview = field(default_factory=lambda: memoryview(b""))
    key: Key = (0, 0, 0)
    body: Tensor | None = None

    def __post_init__(self) -> None:
        self.coming = memoryview(self.header)


@dataclass
class Transfer:
    """A transfer under way: the message it needs next, or its value."""

    steps: Steps
    needs: Key = (0, 0, 0)
    value: Tensor | None = None

    def go_on(self, content: Tensor | None) -> None:
        """With the message it needs (None: at the start), up to the next."""
        try:
            self.needs = next(self.steps) if content is None else self.steps.send(content)
        except StopIteration as end:
            self.value = end.value


class Mesh:
    """This rank's connections. Nothing here waits but ``receive``, ``result`` and ``finish``; meanwhile all
    transfers under way go on as far as they can, since other ranks may need this one's part to get there."""

    def __init__(self, rank: int, sockets: dict[int, socket.socket]) -> None:
        self.rank = rank
        self.peers = {other: Peer(other, one) for other, one in sockets.items()}
        self._by_file = {peer.socket.fileno(): peer for peer in self.peers.values()}
        self._inbox: dict[Key, deque[Tensor]] = defaultdict(deque)
        self._under_way: list[Transfer] = []
        self._posted: dict[Key, Tensor] = {}
        self._poll = select.poll()
        for file in self._by_file:
            self._poll.register(file, select.POLLIN)

    def send(self, to: int, channel: int, tag: int, value: Tensor) -> None:
        """Hand over a contiguous value's bytes; it may change afterwards."""
        peer, content = self.peers[to], bytes_of(value)
        parts = [memoryview(HEADER.pack(channel, tag, len(content))), content]
        sent = 0 if peer.queued else _sent(peer.socket, parts)
        for part in parts:
            if sent < len(part):
                peer.queued.append(memoryview(bytes(part[sent:])))
            sent = max(0, sent - len(part))

    def receive(self, source: int, channel: int, tag: int) -> Tensor:
        """The next message's bytes, [n] uint8; waits for it."""
        box, peer = self._inbox[source, channel, tag], self.peers[source]
        while not box:
            if not self._pull(peer) and not self._go_on():
                self._wait(source)
        return box.popleft()

    def post(self, source: int, channel: int, tag: int, size: int) -> None:
        """Make room for a message that will be received, so that a rank's memory is what its program says."""
        key, peer = (source, channel, tag), self.peers[source]
        arriving = peer.body is not None and peer.key == key
        if not arriving and not self._inbox.get(key):
            self._posted[key] = torch.empty(size, dtype=torch.uint8)

    def begin(self, steps: Steps) -> Transfer:
        """Issue a transfer: it sends what it can at once."""
        transfer = Transfer(steps)
        transfer.go_on(None)
        if transfer.value is None:
            self._under_way.append(transfer)
        return transfer

    def result(self, transfer: Transfer) -> Tensor:
        """Its value; waits for it."""
        while transfer.value is None:
            if not self._go_on() and not self._pull(self.peers[transfer.needs[0]]):
                self._wait()
        return transfer.value

    def finish(self) -> None:
        """Wait until every transfer is done, read or not, and the kernel has taken everything."""
        while self._under_way or any(peer.queued for peer in self.peers.values()):
            if not self._go_on():
                self._wait()

    def _go_on(self) -> bool:
        """Give the transfers under way what has come for them; whether there was anything."""
        moved = False
        for transfer in self._under_way:
            while transfer.value is None and (box := self._inbox.get(transfer.needs)):
                transfer.go_on(box.popleft())
                moved = True
        if moved:
            self._under_way = [transfer for transfer in self._under_way if transfer.value is None]
        return moved

    def barrier(self, channel: int) -> None:
        """Return once every rank has called this: each tells the lowest, which tells all."""
        token = torch.zeros(1, dtype=torch.uint8)
        first = min((self.rank, *self.peers))
        if self.rank != first:
            self.send(first, channel, 0, token)
            self.receive(first, channel, 0)
            return
        for other in sorted(self.peers):
            self.receive(other, channel, 0)
        for other in sorted(self.peers):
            self.send(other, channel, 0, token)

    def _wait(self, *sources: int) -> None:
        """Sleep until some connection can go on, and let it. What nobody here has asked for yet stays in the kernel:
        a rank's memory is what its program says, not who is early."""
        wanted = {*sources, *(one.needs[0] for one in self._under_way), *(key[0] for key in self._posted)}
        for file, peer in self._by_file.items():
            coming = peer.rank in wanted or peer.body is not None
            asked = (select.POLLIN if coming else 0) | (select.POLLOUT if peer.queued else 0)
            self._poll.modify(file, asked | select.POLLRDHUP)
        for file, event in self._poll.poll():
            peer = self._by_file[file]
            if event & select.POLLOUT:
                self._push(peer)
            if event & ~select.POLLOUT:
                self._pull(peer)

    def _push(self, peer: Peer) -> None:
        while peer.queued:
            part = peer.queued[0]
            sent = _sent(peer.socket, [part])
            if sent < len(part):
                peer.queued[0] = part[sent:]
                return
            peer.queued.popleft()

    def _pull(self, peer: Peer) -> bool:
        """Take what has come until a message is whole; whether one is."""
        while True:
            try:
                got = peer.socket.recv_into(peer.coming)
            except BlockingIOError:
                return False
            except OSError as error:
                raise RuntimeError(f"rank {peer.rank}: {error.strerror}") from error
            if not got:
                raise RuntimeError(f"rank {peer.rank}: connection closed by peer")
            peer.coming = peer.coming[got:]
            if not peer.coming and self._turned(peer):
                return True

    def _turned(self, peer: Peer) -> bool:
        """A header or a body is whole: go on to what follows it; whether a message is complete."""
        if peer.body is None:
            channel, tag, size = HEADER.unpack(peer.header)
            peer.key = (peer.rank, channel, tag)
            posted = self._posted.pop(peer.key, None)
            fits = posted is not None and posted.numel() == size
            body = posted if posted is not None and fits else torch.empty(size, dtype=torch.uint8)
            peer.body, peer.coming = body, bytes_of(body)
            if size:
                return False
        self._inbox[peer.key].append(peer.body)
        peer.body, peer.coming = None, memoryview(peer.header)
        return True


def bytes_of(value: Tensor) -> memoryview:
    """A contiguous tensor's memory."""
    return memoryview(value.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _sent(connection: socket.socket, parts: list[memoryview]) -> int:
    """How many bytes the kernel took."""
    try:
        return connection.sendmsg(parts)
    except BlockingIOError:
        return 0
    except OSError as error:
        raise RuntimeError(f"a peer's connection: {error.strerror}") from error


def join(rank: int, size: int, agree: Agree) -> Mesh:
    """Connect to all other ranks; all call this alike. Only who knows a listener's secret is let in."""
    listener = socket.socket()
    _enlarge(listener)
    listener.bind((address_of(os.environ.get("GLOO_SOCKET_IFNAME", "lo")), 0))
    listener.listen(size)
    listener.settimeout(CONNECT_LIMIT_S)
    host, port = listener.getsockname()
    secret = secrets.randbits(62)
    places = agree([int.from_bytes(socket.inet_aton(host), "big"), port, secret])
    sockets = {}
    for other in range(rank):
        number, port, theirs = places[other]
        one = socket.socket()
        _enlarge(one)
        one.settimeout(CONNECT_LIMIT_S)
        one.connect((socket.inet_ntoa(number.to_bytes(4, "big")), port))
        one.sendall(HELLO.pack(theirs, rank))
        sockets[other] = one
    while len(sockets) < size - 1:
        one, _ = listener.accept()
        one.settimeout(CONNECT_LIMIT_S)
        told, other = HELLO.unpack(one.recv(HELLO.size, socket.MSG_WAITALL).ljust(HELLO.size, b"\0"))
        if told == secret and rank < other < size:
            sockets[other] = one
        else:
            one.close()
    listener.close()
    for one in sockets.values():
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.setblocking(False)
    return Mesh(rank, sockets)


def _enlarge(one: socket.socket) -> None:
    """Room for ``SOCKET_BYTES`` each way, as far as the system allows."""
    for option, forced in FORCE.items():
        try:
            one.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BYTES)
        except OSError:
            one.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)


def address_of(interface: str) -> str:
    """An interface's IPv4 address; loopback's where the system does not tell."""
    if interface.startswith("lo"):
        return "127.0.0.1"
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        answer = fcntl.ioctl(one.fileno(), 0x8915, struct.pack("256s", interface.encode()[:15]))  # SIOCGIFADDR
    return socket.inet_ntoa(answer[20:24])
