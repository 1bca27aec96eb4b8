"""``plan explain``, ``plan verify`` and ``plan simulate``: questions to an allocation file."""

from __future__ import annotations

import argparse
import json

from planner.commands.output import say, table, to_terminal
from simulator.allocation import Allocation
from simulator.errors import AttnplanError, SpecError
from simulator.formats.files import load, write_atomically
from simulator.simulation.timeline import breakdown, imbalance, link_utilisation, utilisation
from simulator.units import format_seconds


def explain(arguments: argparse.Namespace) -> int:
    from planner.explain import explain as explanation
    from planner.exploring.flips import Flip, flips

    allocation, found = load(arguments.allocation, Allocation), tuple[Flip, ...]()
    try:
        found = () if arguments.no_flips else flips(allocation)
    except AttnplanError as error:
        say(f"flips were not looked for: {error}")
    text = explanation(allocation, found)
    print(json.dumps({"explanation": text.splitlines()}, indent=2, ensure_ascii=False) if arguments.json else text)
    return 0


def verify(arguments: argparse.Namespace) -> int:
    from planner.execution import read_inputs
    from planner.verification.verify import verify as verify_allocation

    allocation = load(arguments.allocation, Allocation)
    found = read_inputs(allocation)
    problems = verify_allocation(
        allocation, model=found.model, cluster=found.cluster, workload=found.workload, profiles=found.profiles
    )
    if arguments.json:
        print(json.dumps({"accepted": not problems, "problems": list(problems)}, indent=2, ensure_ascii=False))
    if problems:
        raise SpecError(
            f"{arguments.allocation}: {problems[0]}" + (f" (+{len(problems) - 1} more)" if problems[1:] else "")
        )
    say(f"{arguments.allocation}: accepted; every check holds")
    return 0


def simulate(arguments: argparse.Namespace) -> int:
    from planner.execution import default_question, entry, inputs, programs
    from simulator.measurement import Question
    from simulator.simulation.chrome_trace import chrome_trace
    from simulator.simulation.engine import simulate as simulate_program

    allocation = load(arguments.allocation, Allocation)
    question = default_question(allocation, arguments.tokens, 1, "chosen")
    if arguments.phase == "decode":
        batch = entry(allocation, "decode", question.tokens).batch
        question = Question(tokens=question.tokens, batch=batch, decoded_tokens=1)
    found = inputs(allocation)
    program = programs(allocation, found, question)[0 if arguments.phase == "prefill" else 1]
    timeline = simulate_program(program, found.cluster, found.profiles, record_load=arguments.trace is not None)
    if arguments.trace is not None:
        write_atomically(arguments.trace, chrome_trace(timeline, found.cluster))
        say(f"wrote {arguments.trace}; open it in Perfetto")
    times, links = breakdown(timeline), link_utilisation(timeline)
    facts = {
        "step_s": timeline.duration_s,
        "compute_s": times.compute_s,
        "exposed_communication_s": times.exposed_communication_s,
        "launch_s": times.launch_s,
        "imbalance_s": times.imbalance_s,
        "utilisation": utilisation(timeline, timeline.ranks),
        "imbalance": imbalance(timeline, timeline.ranks),
        "operations": program.num_operations,
    }
    if arguments.json:
        print(json.dumps({**facts, "link_utilisation": links}, indent=2))
        return 0
    rows = [(name, format_seconds(value) if name.endswith("_s") else f"{value:.4g}") for name, value in facts.items()]
    title = f"{arguments.phase} of {question.tokens:,} tokens × {question.batch}: mean over ranks"
    to_terminal(table(title, ("what", "value"), rows))
    busiest = [(name, f"{share:.1%}") for name, share in list(links.items())[:8]]
    to_terminal(table("Busiest links, share of their capacity", ("link", "used"), busiest))
    return 0
