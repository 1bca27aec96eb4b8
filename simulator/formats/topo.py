"""``nvidia-smi topo -m`` → a cluster of nodes like the one it was printed on.

What it reads: which pairs of GPUs share NVLinks and how many, and the NICs. What the matrix does not tell
(GPU, NIC and PCIe rates, how many nodes) is asked for. One link kind a node is modelled: where NVLink joins
only some pairs, every pair is planned at the PCIe rate, and the cluster says so.
Source: the legend that nvidia-smi topo -m prints.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path

from simulator.cluster import Cluster, Gpu, Nics, Node, NodeLink
from simulator.errors import SpecError
from simulator.formats.files import validate
from simulator.formats.table import read_lines

NVLINK_BYTES_PER_S = 25e9  # a link each way; NVLink 2, 3 and 4 datasheets (NVLink 5: 50e9)
ASSUMED_LATENCY_S = 5e-6
MOST_LINKS_OF_A_GPU = 18  # NVLink 4 and 5; more than that to all peers together means a switch
MAX_DEVICES = 256
FAR = "SYS"  # across the sockets' interconnect
PATHS = ("X", "PIX", "PXB", "PHB", "NODE", FAR)
_ENTRY = re.compile(r"X|PIX|PXB|PHB|NODE|SYS|NV[1-9][0-9]?")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_DEVICE = re.compile(r"[A-Za-z][A-Za-z0-9_:.-]{0,39}")


@dataclass(frozen=True, slots=True)
class TopoOptions:
    """What the matrix does not tell. None: not needed, or SpecError asks for it."""

    gpu: Gpu
    num_nodes: int = 1
    nic_bandwidth_bytes_per_s: float | None = None
    nics_per_node: int | None = None
    pcie_bandwidth_bytes_per_s: float | None = None
    nvlink_bytes_per_s: float = NVLINK_BYTES_PER_S

    def __post_init__(self) -> None:
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if value is not None and not 0 < value < math.inf:
                raise SpecError(f"{field.name}: not a finite number above 0, got {value}")


@dataclass(frozen=True, slots=True)
class Matrix:
    """The printed matrix: device names in order and what connects each pair."""

    devices: tuple[str, ...]
    entries: tuple[tuple[str, ...], ...]

    @property
    def gpus(self) -> tuple[int, ...]:
        return tuple(i for i, name in enumerate(self.devices) if re.fullmatch(r"GPU[0-9]+", name))

    @property
    def nics(self) -> tuple[int, ...]:
        return tuple(i for i in range(len(self.devices)) if i not in self.gpus)


def from_topo(path: Path, options: TopoOptions) -> Cluster:
    """The cluster of ``options.num_nodes`` nodes that look like the printed one."""
    matrix = read_matrix(path)
    link, about_link = _node_link(matrix, options, path)
    nics, about_nics = _nics(matrix, options, path)
    node = Node(count=options.num_nodes, gpu=options.gpu.name, gpus=len(matrix.gpus), link=link, nics=nics).model_dump(
        mode="json"
    )
    record = {
        "name": re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem)[:100].strip("-") or "cluster",
        "gpus": [options.gpu.model_dump(mode="json")],
        "nodes": [node],
        "assumptions": [*about_link, *about_nics, f"latencies of {ASSUMED_LATENCY_S * 1e6:g} µs"],
        "source": f"nvidia-smi topo -m, {path.name}",
    }
    return validate(record, Cluster, source=str(path))


def read_matrix(path: Path) -> Matrix:
    """The matrix in the text; SpecError names the line that is not understood."""
    lines = [(number, _ANSI.sub("", line)) for number, line in read_lines(path)]
    start = next((i for i, (_, line) in enumerate(lines) if re.match(r"\s+GPU0\b", line)), None)
    if start is None:
        raise SpecError(f"{path}: no header line that begins with GPU0; give the output of nvidia-smi topo -m")
    devices = _header(lines[start][1], f"{path}:{lines[start][0]}")
    rows: list[tuple[str, ...]] = []
    for number, line in lines[start + 1 :]:
        if len(rows) == len(devices) or not line.strip():
            break
        rows.append(_row(line, devices, len(rows), f"{path}:{number}"))
    if len(rows) != len(devices):
        raise SpecError(f"{path}: the row of {devices[len(rows)]} is missing; give the whole matrix")
    for i, row in enumerate(rows):
        for j, entry in enumerate(row):
            if entry != rows[j][i] or (entry == "X") != (i == j):
                place = f"{path}:{lines[start][0] + 1 + i}"
                raise SpecError(f"{place}: {devices[i]} to {devices[j]} is {entry}, back it is {rows[j][i]}")
    return Matrix(devices, tuple(rows))


def _header(line: str, place: str) -> tuple[str, ...]:
    names = re.split(r"\t|\s{2,}", line.strip())
    last = next((i for i, name in enumerate(names) if name.strip() == "CPU Affinity"), len(names))
    devices = tuple(name.strip() for name in names[:last] if name.strip())
    named = all(_DEVICE.fullmatch(name) for name in devices)
    if not named or len(set(devices)) != len(devices) or len(devices) > MAX_DEVICES:
        raise SpecError(f"{place}: not a header of at most {MAX_DEVICES} different devices: {line.strip()[:60]!r}")
    return devices


def _row(line: str, devices: tuple[str, ...], index: int, place: str) -> tuple[str, ...]:
    name, *cells = line.split()
    if name != devices[index]:
        raise SpecError(f"{place}: {name[:40]!r} where the row of {devices[index]} belongs")
    if len(cells) < len(devices):
        raise SpecError(f"{place}: {len(cells)} entries for {len(devices)} devices")
    for column, entry in zip(devices, cells, strict=False):
        if not _ENTRY.fullmatch(entry):
            known = ", ".join(PATHS)
            raise SpecError(f"{place}: {name} to {column}: unknown {entry[:40]!r}; known: {known}, NV#")
    return tuple(cells[: len(devices)])


def _node_link(matrix: Matrix, options: TopoOptions, path: Path) -> tuple[NodeLink, list[str]]:
    """NVLink between every pair alike: a switch or direct links; anything else: the PCIe rate."""
    gpus = matrix.gpus
    pairs = {(i, j): matrix.entries[i][j] for i in gpus for j in gpus if i < j}
    kinds = set(pairs.values())
    if len(kinds) == 1 and (kind := next(iter(kinds))).startswith("NV"):
        return _nvlink(int(kind[2:]), len(gpus), options)
    if options.pcie_bandwidth_bytes_per_s is None:
        found = ", ".join(sorted(kinds)) or "a single GPU"
        raise SpecError(f"{path}: the GPUs' links are {found}: state pcie_bandwidth_bytes_per_s (25e9: gen 4 x16)")
    joined = [f"{matrix.devices[i]}-{matrix.devices[j]}" for (i, j), k in pairs.items() if k.startswith("NV")]
    notes = [f"NVLink joins only {', '.join(joined)}; every pair is planned at the PCIe rate"] if joined else []
    rate, source = options.pcie_bandwidth_bytes_per_s, "stated with the import"
    link = NodeLink(kind="pcie", bandwidth_bytes_per_s=rate, latency_s=ASSUMED_LATENCY_S, source=source)
    return link, notes


def _nvlink(links: int, num_gpus: int, options: TopoOptions) -> tuple[NodeLink, list[str]]:
    """Behind a switch NV# counts all of a GPU's links, directly wired those to one peer."""
    direct = links * (num_gpus - 1) <= MOST_LINKS_OF_A_GPU
    total = links * (num_gpus - 1) if direct else links
    rate = total * options.nvlink_bytes_per_s
    link = NodeLink(
        kind="pairwise" if direct else "switch",
        bandwidth_bytes_per_s=rate,
        latency_s=ASSUMED_LATENCY_S,
        source=f"NV{links} in nvidia-smi topo -m",
    )
    wiring = "wired directly" if direct else "behind a switch"
    each = f"{options.nvlink_bytes_per_s / 1e9:g}e9 B/s each way"
    return link, [f"{total} NVLinks a GPU, {wiring}, {each} a link = {rate / 1e9:g}e9 B/s"]


def _nics(matrix: Matrix, options: TopoOptions, path: Path) -> tuple[Nics | None, list[str]]:
    """The NICs near a GPU (storage ports are far from all); all of them where none is near."""
    near = [nic for nic in matrix.nics if any(matrix.entries[nic][gpu] != FAR for gpu in matrix.gpus)]
    used = near or list(matrix.nics)
    far = [matrix.devices[nic] for nic in matrix.nics if nic not in used]
    notes = [f"{', '.join(far)}: across the socket from every GPU, taken for storage"] if far else []
    count = options.nics_per_node or len(used)
    if not count and options.num_nodes == 1:
        return None, notes
    if not count:
        raise SpecError(f"{path}: no NIC is listed for {options.num_nodes} nodes: state nics_per_node")
    if options.nic_bandwidth_bytes_per_s is None:
        raise SpecError(f"{path}: {count} NICs of unknown rate: state nic_bandwidth_bytes_per_s (25e9: HDR)")
    rate, source = options.nic_bandwidth_bytes_per_s, "stated with the import"
    nics = Nics(count=count, bandwidth_bytes_per_s=rate, latency_s=ASSUMED_LATENCY_S, source=source)
    return nics, notes
