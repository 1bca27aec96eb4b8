"""Time slices: how long a thread keeps its core before another thread that waits for the core gets its turn.

Ranks that share a core take turns. With the kernel's own slices, some milliseconds, whoever a short operation waits for
may be a whole slice late at every meeting. Since Linux 6.12 (EEVDF) any thread may ask for slices of its own; threads
it starts later inherit them. Elsewhere nothing changes.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

SYSCALL = {"x86_64": 314, "aarch64": 274}  # sched_setattr; man 2 syscall, arch/*/syscalls
SCHED_ATTR = struct.Struct("<IIQiIQQQII")  # size, policy, flags, nice, priority, runtime ns, deadline, period, util ×2
SCHED_OTHER = 0
SLICE_S = 0.3e-3  # a hundred times what a switch between two ranks costs


def ask_for_slices(seconds: float = SLICE_S) -> bool:
    """Ask for slices of ``seconds`` for this thread and those it starts; whether the kernel agreed."""
    number = SYSCALL.get(platform.machine())
    if platform.system() != "Linux" or number is None:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)  # as it was
    attributes = SCHED_ATTR.pack(SCHED_ATTR.size, SCHED_OTHER, 0, nice, 0, round(seconds * 1e9), 0, 0, 0, 0)
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
