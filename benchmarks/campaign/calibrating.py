"""Calibrating: a model's kernels, then what a place's hosts and links cost, in the minutes before they run together.

A shared machine drifts within a quarter of an hour by more than plans differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.campaign.cells import TEACHER_ROUNDS, Cell, teaching_cells
from benchmarks.campaign.places import PLACES
from benchmarks.campaign.race import run_race
from calibration.in_steps import Played, covering, preferred, rows_in_steps, with_classes
from calibration.rows import TimedRow
from calibration.shared_cores import Question, shared_cores
from calibration.sweep import SOURCE, Sweep, cpu_device, cpu_kernels, cpu_profile, hints_of
from executor import world_timing
from executor.emulated_hosts import seats_here
from executor.environment import cpu_name
from executor.pace import Paces, at_usual_pace, usual_paces
from executor.step_timing import Timing, time_steps
from executor.supervisor import Supervisor
from executor.timing import time_kernels
from executor.world_timing import CollectiveTime, MessageTime
from planner.learning import Lesson, taught
from simulator.cluster import Cluster
from simulator.formats.files import load, to_json, write_atomically
from simulator.host import Host
from simulator.profile import Profile, SendRecv, load_profile

KERNEL_BUDGET_S = 30.0  # of a cell's plans, at most
PASSES = 3  # over all cells, so that a slow moment meets a third of a kernel's times, not all
ALONE_BUDGET_S = 20.0
LOADED_S = 1.0
PACE_S = 10.0


def paces_of(path: Path, world: Supervisor) -> Paces:
    """The usual paces (executor/pace.py) of the world's cores, as they were when the file was written."""
    if not path.exists():
        write_atomically(path, json.dumps({"usual_s": usual_paces(world, PACE_S)}) + "\n")
    return tuple(json.loads(path.read_text(encoding="utf-8"))["usual_s"])


def kernel_sweep(folder: Path, cells: Sequence[Cell]) -> Profile:
    """The machine's kernels: those of the cells' (and their place's teachers') plans inside steps, others and what
    steps leave out alone; then what operations of each class take beyond their kernels."""
    path = folder / "kernels.json"
    if path.exists():
        return load_profile(path)
    questions = (*cells, *teaching_cells(cells[0].place))
    core = seats_here(1)[0]  # of several ranks, as in the places, of which one computes and the others rest
    with Supervisor(2, timeout_s=10 * KERNEL_BUDGET_S, seats=(core, core)) as world:
        usual_s, _ = paces_of(folder / "core.json", world)
        passes = [[played_plans(cell, world, usual_s) for cell in questions] for _ in range(PASSES)]
        played = [one for times in zip(*passes, strict=True) for one in typical(times)]
        in_steps = rows_in_steps(played)
        met = {row.kernel for row in in_steps}
        missing = [kernel for kernel in hints_of(program for program, _ in played) if kernel not in met]
        kernels_alone = cpu_kernels("fp32", missing)
        seconds = world.run(time_kernels, kernels_alone, "fp32", ALONE_BUDGET_S)[0]
    alone = tuple(TimedRow(kernel, s, SOURCE) for kernel, s in zip(kernels_alone, seconds, strict=False))
    print(f"{len(in_steps)} kernels timed in steps, {len(alone)} alone ({len(missing)} of them of the plans)")
    rows = preferred(in_steps, alone)
    profile = with_classes(cpu_profile(Sweep(rows, cpu_device(cpu_name(), rows))), played, PLACES["one-host"])
    write_atomically(path, to_json(profile))
    return profile


def played_plans(cell: Cell, world: Supervisor, usual_s: float) -> list[Played]:
    """The cell's plans that show all of its kernels, and the seconds of their operations in one step."""
    race = cell.race()
    programs = [race.program(placement) for placement in race.placements]
    chosen = covering(programs, times=2)
    plans = tuple((race.step, race.placements[index]) for index in chosen)
    timing = Timing(KERNEL_BUDGET_S / PASSES, usual_s, repeats=1, steady=False)  # races alternate plans
    spans = world.run(time_steps, race.model, plans, race.nodes, timing)[0]
    return list(zip((programs[index] for index in chosen), spans, strict=False))


def typical(times: Sequence[Sequence[Played]]) -> list[Played]:
    """Of plans that were played in every pass, each operation's median seconds."""
    return [
        (same[0][0], [np.median(ranks, axis=0).tolist() for ranks in zip(*(spans for _, spans in same), strict=True)])
        for same in zip(*times, strict=False)
    ]


def place_paces(folder: Path, world: Supervisor) -> Paces:
    """Of the place's cores when its calibration began."""
    return paces_of(folder / "cores.json", world)


def calibrated_place(folder: Path, cluster: Cluster, world: Supervisor) -> tuple[Cluster, Profile]:
    """The cluster with its NICs' latencies, and the profile with its hosts, as measured on this world, and with what
    steps of a model that is not the campaign's teach beyond that."""
    profile_path, cluster_path = folder / "profile.json", folder / "cluster.json"
    if profile_path.exists() and cluster_path.exists():
        return load(cluster_path, Cluster), load_profile(profile_path)
    paces = place_paces(folder, world)
    measured = measured_place(folder, cluster, world, paces)
    cluster = at_usual_pace(world, paces, lambda: with_nic_latency(cluster, world))
    lessons = [one for cell in teaching_cells(cluster.name) for one in lessons_of(cell, world, paces)]
    profile = taught(measured, cluster, lessons)
    write_atomically(folder / "measured.json", to_json(measured))
    write_atomically(cluster_path, to_json(cluster))
    write_atomically(profile_path, to_json(profile))
    return cluster, profile


def lessons_of(cell: Cell, world: Supervisor, paces: Paces) -> list[Lesson]:
    """A short race of the cell's candidates."""
    race = cell.race()
    runs = run_race(world, race, TEACHER_ROUNDS, paces=paces)
    return [
        Lesson(race.program(placement), median(run.durations_s), run.spans_s, run.durations_s, cell.name)
        for placement, run in zip(race.placements, runs, strict=True)
    ]


def measured_place(folder: Path, cluster: Cluster, world: Supervisor, paces: Paces) -> Profile:
    """The kernels with this world's hosts, messages and collectives."""
    kernels, ranks = load_profile(folder / "kernels.json"), cluster.nodes[0].gpus
    times = at_usual_pace(world, paces, lambda: world_timing.time_messages(world))
    latency_s, bytes_per_s = world_timing.latency_and_bandwidth(times)
    timed = [
        one
        for kind in world_timing.COLLECTIVE_KINDS
        for num_ranks in range(2, ranks + 1)
        for one in at_usual_pace(world, paces, partial(world_timing.time_collective, world, kind, num_ranks))
    ]
    host = at_usual_pace(world, paces, lambda: measured_host(cluster, world, times, timed))
    host = host.model_copy(update={"view_s": kernels.host.view_s if kernels.host else 0.0})
    rows = tuple(TimedRow(one.kernel, one.seconds, SOURCE) for one in timed)
    source = f"{SOURCE}: ping-pong of two ranks"
    measured = SendRecv(latency_s=latency_s, bandwidth_bytes_per_s=bytes_per_s, tag="measured", source=source)
    sweep = cpu_profile(Sweep(rows, kernels.gpu, host, measured))
    return kernels.model_copy(
        update={"host": host, "send_recv": measured, "collectives": sweep.collectives, "name": cluster.name}
    )


def measured_host(
    cluster: Cluster, world: Supervisor, times: Sequence[MessageTime], timed: Sequence[CollectiveTime]
) -> Host:
    """What the first node's cores and memory do, and what transfers take of its ranks' threads."""
    first = cluster.nodes[0]
    cores = first.cores or first.gpus
    issue_s, issue_s_per_byte = world_timing.issue_cost(times)
    receive_s, receive_s_per_byte = world_timing.receive_cost(times)
    message_s, collective_s_per_byte = world_timing.collective_threads(timed) if timed else (None, 0.0)
    alone = [one for cell in teaching_cells(cluster.name) for one in of_one_rank(cell)]
    capacity, turn_share = shared_cores(world, cores, alone, Timing(LOADED_S / 2, steady=False))
    return Host(
        transfer_issue_s=issue_s,
        send_issue_s_per_byte=issue_s_per_byte,
        receive_s=receive_s,
        receive_s_per_byte=receive_s_per_byte,
        core_capacity=capacity,
        collective_message_s=message_s,
        collective_s_per_byte=collective_s_per_byte,
        turn_share=turn_share,
        memory_bandwidth_bytes_per_s=world_timing.memory_bandwidth_bytes_per_s(world, cores, LOADED_S),
    )


def of_one_rank(cell: Cell) -> Iterator[Question]:
    """The cell's step on one rank, and a quarter of it: what ranks hold of a step lies between."""
    race = cell.race()
    alone = next(one for one in race.placements if one.name == "tp1")
    smaller = {"tokens": race.tokens // 4} if race.phase == "prefill" else {"batch": race.batch // 4}
    for part in (race, replace(race, **smaller)):
        yield part.model, part.step, alone


def with_nic_latency(cluster: Cluster, world: Supervisor) -> Cluster:
    """NIC latencies as a message from the first host to the second finds them, beyond its threads' time."""
    if len(cluster.nodes) == 1:
        return cluster
    pair = (0, cluster.nodes[0].gpus)
    times = world_timing.time_messages(world, world_timing.MESSAGE_BYTES[:1], pair=pair)
    latency_s, _ = world_timing.latency_and_bandwidth(times)
    nodes = tuple(
        node.model_copy(update={"nics": node.nics and node.nics.model_copy(update={"latency_s": latency_s})})
        for node in cluster.nodes
    )
    return cluster.model_copy(update={"nodes": nodes, "fabric": cluster.fabric.model_copy(update={"latency_s": 0.0})})
