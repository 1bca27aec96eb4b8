"""Metrics: what every number is called, its unit, and one sentence that says how it is made. The same sentence is shown
on screen. Functions for those that are read off requests; a step's own parts are read off its ``Timeline``.

Two families stay apart: ours (the field's usual definitions) and the documents', whose names are the same and whose
meanings are not. Sources: FA Pool documents, sections 4.4 and 5.1; MA Separation document, "Evaluation Metrics".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Better = Literal["lower", "higher", "neither"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A name, its SI unit ("1": a ratio), its definition, and which way is better."""

    name: str
    unit: str
    definition: str
    better: Better = "lower"


STEP_TIME = Metric("step time", "s", "From the start of a forward pass to the end of its last operation on any rank.")
QUEUEING = Metric("queueing", "s", "From a request's arrival to the start of the prefill step that contains it.")
TTFT = Metric("TTFT", "s", "From a request's arrival to its first output token: queueing plus its prefill step.")
TPOT = Metric(
    "TPOT", "s", "From a request's first output token to its last, over its output tokens after the first (≥ 2)."
)
END_TO_END = Metric("end-to-end", "s", "From a request's arrival to its last output token.")
TPS = Metric(
    "TPS", "tokens/s", "Input plus output tokens of all requests, over first arrival to last completion.", "higher"
)
TPS_PER_GPU = Metric(
    "TPS per GPU",
    "tokens/s/GPU",
    "TPS over the average number of GPUs held: the bases, and of the pool what is leased or changing hands.",
    "higher",
)
GPU_SECONDS_PER_TOKEN = Metric(
    "GPU-seconds per token", "s/token", "GPU-seconds held, over input plus output tokens: the inverse of TPS per GPU."
)
UTILISATION_BASE = Metric(
    "base utilisation", "1", "Share of the base GPUs' time in which a step of theirs runs.", "higher"
)
UTILISATION_POOL = Metric(
    "pool utilisation", "1", "Share of the held pool GPUs' time in which a step runs on them.", "higher"
)
COMPUTE = Metric("compute", "s", "Time in a step in which a rank computes, averaged over ranks.")
EXPOSED_COMMUNICATION = Metric(
    "exposed communication", "s", "Time in a step in which a rank has a transfer in flight and computes nothing."
)
HIDDEN_COMMUNICATION = Metric(
    "hidden communication", "s", "Time in a step in which a rank has a transfer in flight and computes.", "neither"
)
IMBALANCE = Metric("imbalance", "1", "Largest compute time of a group of ranks over the group's mean (1: even).")
DOCUMENTS_TPOT = Metric(
    "documents' TPOT",
    "s",
    "Time of one forward pass over a sequence's n tokens: what the documents' table calls time per output token.",
)
DOCUMENTS_TPS = Metric(
    "documents' TPS",
    "1000 tokens/s",
    "n over the time of that pass, in thousands: what the documents' table calls tokens per second (of one sequence).",
    "higher",
)
DOCUMENTS_GAP_TPOT = Metric(
    "documents' gap TPOT",
    "s",
    "Mean gap between output tokens, divided once more by their number: measure_tpot() as the document writes it.",
)
DOCUMENTS_INPUT_TPS = Metric(
    "documents' input TPS",
    "tokens/s",
    "Input tokens alone over the time of all forward passes: measure_tps() as the document writes it.",
    "higher",
)

ALL: tuple[Metric, ...] = (
    STEP_TIME,
    QUEUEING,
    TTFT,
    TPOT,
    END_TO_END,
    TPS,
    TPS_PER_GPU,
    GPU_SECONDS_PER_TOKEN,
    UTILISATION_BASE,
    UTILISATION_POOL,
    COMPUTE,
    EXPOSED_COMMUNICATION,
    HIDDEN_COMMUNICATION,
    IMBALANCE,
    DOCUMENTS_TPOT,
    DOCUMENTS_TPS,
    DOCUMENTS_GAP_TPOT,
    DOCUMENTS_INPUT_TPS,
)


def tpot_s(first_token_s: Floats, finish_s: Floats, output_tokens: Ints) -> Floats:
    """Per request; NaN where there is one output token and so no gap."""
    gaps = output_tokens - 1
    result: Floats = np.full(len(gaps), np.nan)
    np.divide(finish_s - first_token_s, gaps, out=result, where=gaps > 0)
    return result


def tokens_per_s(num_tokens: int, duration_s: float) -> float:
    """NaN for a duration of zero: one instant has no rate."""
    return num_tokens / duration_s if duration_s > 0 else float("nan")


def documents_tps(num_tokens: int, forward_s: float) -> float:
    """n / T / 1000, e.g. 8192 tokens in 245 ms: 33.4, the documents' table."""
    return num_tokens / forward_s / 1000


def documents_gap_tpot_s(gaps_s: Floats) -> float:
    """mean(gap / num_tokens): their ``num_tokens`` is undefined; we read the number of generated tokens."""
    return float(np.mean(gaps_s / len(gaps_s)))
