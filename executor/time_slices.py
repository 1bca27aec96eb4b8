"""Time slices: who gets a core when several threads want it.

Ranks that share a core take turns in short slices where the kernel lets a thread ask for them (EEVDF, Linux 6.12),
which the threads it starts later inherit. They run in batch policy: a rank that a message wakes does not take the core
of the rank that sent it, which has more to send (a base rank's next pool rank waited 2 ms for its queries; decode steps
of pools of two are an eighth to a sixth shorter so, none of twelve plans longer). A kernel that preempts lazily (since
6.13) looks at slices at its tick only, every 4 ms; to make it look more often (a real-time process that wakes every 0.6
or 2 ms) cost steps 5-15 % and made them no steadier. Elsewhere nothing changes.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

SYSCALL = {"x86_64": 314, "aarch64": 274}  # sched_setattr; man 2 syscall, arch/*/syscalls
SCHED_ATTR = struct.Struct("<IIQiIQQQII")  # size, policy, flags, nice, priority, runtime ns, deadline, period, util ×2
SCHED_OTHER, SCHED_BATCH = 0, 3
SLICE_S = 0.3e-3  # a hundred times what a switch between two ranks costs


def ask_for_slices(seconds: float = SLICE_S) -> bool:
    """Ask for slices of ``seconds`` and batch policy for this thread and those it starts; whether the kernel agreed. A
    thread that was started idle, in batch or real-time stays as it is."""
    number = SYSCALL.get(platform.machine())
    if platform.system() != "Linux" or number is None or os.sched_getscheduler(0) != SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)  # as it was
    attributes = SCHED_ATTR.pack(SCHED_ATTR.size, SCHED_BATCH, 0, nice, 0, round(seconds * 1e9), 0, 0, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(number, 0, ctypes.create_string_buffer(attributes, len(attributes)), 0) == 0)


def own_slice_s() -> float | None:
    """This thread's slice, where the kernel tells; None elsewhere."""
    try:
        with open("/proc/thread-self/sched", encoding="utf-8") as file:
            rows = dict(line.split(":", 1) for line in file if line.startswith("se.slice"))
    except OSError:
        return None
    return next((float(value) / 1e9 for value in rows.values()), None)
