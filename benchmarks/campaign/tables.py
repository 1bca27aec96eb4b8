"""python -m benchmarks.campaign.tables: results/validate.json as README's table and as docs/campaign.md.

README's is whatever stands between the two markers; docs/campaign.md is written whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.campaign.report import RESULTS
from simulator.errors import SpecError
from simulator.formats.files import write_atomically

ROOT = RESULTS.parent.parent
BEGIN, END = "<!-- campaign: python -m benchmarks.campaign.tables -->", "<!-- end of campaign -->"
Figures = Mapping[str, float]

ALL_CELLS = 128
HEAD = (
    "| | cells | step error, median / p90 / worst | regret, median / worst | Kendall τ, median | τ of pairs that the "
    "rounds tell apart | 90 % intervals cover |\n|---|---|---|---|---|---|---|"
)
PLACES = {
    "one-host": "one host",
    "two-hosts-10to1": "two hosts, 10:1",
    "two-hosts": "two hosts, 1:1",
    "slow-rank": "one slow rank",
}
TITLES = {
    "predicted beforehand": "predicted beforehand",
    "other lengths, as calibrated": "beforehand, lengths that teach nothing below",
    "other lengths, recalibrated": "recalibrated, other lengths",
}


def percent(value: float, digits: int = 0) -> str:
    return "–" if value != value else f"{100 * value:.{digits}f} %"


def row(name: str, figures: Figures) -> str:
    tau, apart = (figures.get(key, math.nan) for key in ("tau_median", "tau_distinct_median"))
    taus = "– | –" if tau != tau else f"{tau:.2f} | {apart:.2f}"
    error = (
        f"{percent(figures['error_median'], 1)} / {percent(figures['error_p90'])} / {percent(figures['error_worst'])}"
    )
    regret = " / ".join(percent(figures.get(key, math.nan)) for key in ("regret_median", "regret_worst"))
    return f"| {name} | {figures['cells']:.0f} | {error} | {regret} | {taus} | {percent(figures['coverage'])} |"


def groups(figures: Mapping[str, Figures]) -> list[str]:
    """A title's rows below the one of all: phases and places."""
    named = {"prefill": "prefill", "decode": "decode", **PLACES}
    return [row(f"— {name}", figures[key]) for key, name in named.items() if key in figures]


def short(document: Mapping[str, Any]) -> str:
    """README's part."""
    all_, lines = document["figures"], [HEAD]
    for title, figures in all_.items():
        if "as calibrated" in title:
            continue
        lines.append(row(TITLES[title], figures["all"]))
        if title == "predicted beforehand":
            lines += groups(figures)
    first = all_["predicted beforehand"]["all"]
    told = (
        f"\n{document['cells']} of {ALL_CELLS} cells, {document['rounds']} rounds each ({again(document)}), which "
        f"themselves spread by ±{percent(first['spread_median'], 1)} (half of their 90 % range, median). "
        '"Too close to call" was said '
        f"beforehand in {percent(first['too_close_share'])} of the cells, and what was said held in "
        f"{percent(first['hit_rate'])}. Missed of the aims (regret ≤ 3 % median, ≤ 10 % worst; τ ≥ 0.9; "
        f"85–95 % covered; recalibrated ≤ 8 % median, ≤ 20 % p90): {missed(all_)}."
    )
    return "\n".join([*lines, told])


def again(document: Mapping[str, Any]) -> str:
    """Rounds that did not count."""
    number, of = document.get("again"), document["cells"] * document["rounds"]
    if number is None:
        return "whatever the machine's pace"
    return f"{number} more, beside {of}, met the machine slower or faster than when it was calibrated: run again"


def missed(all_: Mapping[str, Mapping[str, Figures]]) -> str:
    """What misses its aim, with its figure; "nothing" if nothing does."""
    found = []
    for title, groups_ in all_.items():
        figures = groups_["all"]
        if "as calibrated" in title:
            continue
        aims = [
            ("median regret", percent(figures["regret_median"]), figures["regret_median"] > 0.03),
            ("worst regret", percent(figures["regret_worst"]), figures["regret_worst"] > 0.10),
            ("τ", f"{figures['tau_median']:.2f}", figures["tau_median"] < 0.9),
            ("coverage", percent(figures["coverage"]), not 0.85 <= figures["coverage"] <= 0.95),
        ]
        if "recalibrated" in title:
            aims.append(("median error", percent(figures["error_median"], 1), figures["error_median"] > 0.08))
            aims.append(("p90", percent(figures["error_p90"]), figures["error_p90"] > 0.20))
        found += [f"{what} {value} ({TITLES[title]})" for what, value, is_missed in aims if is_missed]
    return ", ".join(found) or "nothing"


def long(document: Mapping[str, Any], misses: Sequence[Mapping[str, Any]]) -> str:
    """docs/campaign.md."""
    environment = document["environment"]
    parts = [
        "# The campaign: is the plan predicted fastest the fastest when run?",
        "",
        "Written by `python -m benchmarks.campaign.tables` from `benchmarks/results/validate.json`, which "
        "`python -m benchmarks.validate` measured (how: [method](method.md), "
        "`benchmarks/validate.py`). Predictions were in git before their place ran: "
        "`benchmarks/results/predictions.jsonl`.",
        "",
        f"{environment['device']}, torch {environment['torch']}; {document['cells']} of {ALL_CELLS} cells, "
        f"{document['rounds']} interleaved rounds a cell; {again(document)}.",
        "*Step error*: |predicted / median of the rounds − 1|. *Regret*: the median of the plan predicted fastest over "
        "the least median. *Cover*: share of single rounds in the predicted 90 % interval of a single step.",
    ]
    for title, figures in document["figures"].items():
        schemes = [row(key, value) for key, value in figures.items() if key.startswith("scheme ")]
        more = figures["all"]
        parts += ["", f"## {TITLES[title].capitalize()}", "", HEAD, row("all", more), *groups(figures), *schemes, ""]
        parts.append(
            f"Bias {percent(more['bias_median'], 1)} (median of signed errors); spread of the rounds "
            f"±{percent(more['spread_median'], 1)}; worst regret at least {percent(more['regret_worst_low'])} in 95 % "
            f"of paired resamples; too close to call {percent(more['too_close_share'])}, and what was said held in "
            f"{percent(more['hit_rate'])}."
        )
    ranked = [one for one in misses if "regret" in one]
    parts += ["", "## Misses", ""]
    parts.append(
        f"`invalidation.jsonl` has {len(misses) - len(ranked)} steps that were wrong by more than 20 %, and "
        f"{len(ranked)} cells whose choice cost more than 10 %, of all campaigns; nothing is taken out. The cells:"
    )
    parts += ["", "| cell | regret | chosen | best | |", "|---|---|---|---|---|"]
    parts += [
        f"| {one['cell']} | {percent(one['regret'])} | {one['chosen']} | {one['best']} | {one['why']} |"
        for one in ranked
    ]
    return "\n".join(parts) + "\n"


def with_part(text: str, part: str) -> str:
    """``text`` with what stands between the markers replaced."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SpecError(
            f"README.md: the markers {BEGIN!r} and {END!r} are missing; put the campaign's table between them"
        )
    return f"{before}{BEGIN}\n\n{part}\n\n{END}{after}"


def main() -> None:
    document = json.loads((RESULTS / "validate.json").read_text(encoding="utf-8"))
    lines = (RESULTS / "invalidation.jsonl").read_text(encoding="utf-8").splitlines()
    write_atomically(ROOT / "docs" / "campaign.md", long(document, [json.loads(line) for line in lines]))
    readme = ROOT / "README.md"
    write_atomically(readme, with_part(readme.read_text(encoding="utf-8"), short(document)))


if __name__ == "__main__":
    main()
