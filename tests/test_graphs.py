"""CUDA graphs of decode steps: what is put back at replay, and the fall back. Capture itself needs a GPU; here the same
book-keeping drives a capture that runs the recorded step again on its fixed input, as a graph does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from executor.graphs import Graphs, cuda_capture
from executor.mailboxes import MailboxTransport, Post, Turns
from executor.reference import Reference
from executor.replay import NoProgress
from executor.session import Session, prompts_of
from executor.transfers import planned
from simulator.model import Experts
from tests.executor_world import generation_of
from tests.schemes import static, tiny_model

MODEL = tiny_model(experts=Experts(num_experts=4, top_k=2, intermediate_size=24))
GENERATION = replace(generation_of(MODEL, static(MODEL, 1), num_decoded=5), keep_logits=False)
WANT = Reference(MODEL).generate(prompts_of(GENERATION), 6)


def run_again(calls: list[int]) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """A capture whose replay runs the body again."""

    def capture(body: Callable[[], None]) -> Callable[[], None]:
        body()
        return lambda: (calls.append(1), body())[1]  # type: ignore[func-returns-value]

    return capture


def session_with(graphs_of: Callable[[Session], Graphs]) -> Session:
    session = Session(GENERATION, 0, MailboxTransport(0, Post(), Turns(0)), NoProgress(), device=torch.device("cpu"))
    session.graphs = graphs_of(session)
    return session


def tokens_of(session: Session) -> list[list[int]]:
    tokens: torch.Tensor | None = torch.cat(prompts_of(GENERATION))
    rows = []
    for number in range(6):
        result = session.step(number, tokens)
        tokens = result.tokens
        assert tokens is not None
        rows.append(tokens.tolist())
    return [list(column) for column in zip(*rows, strict=True)]


def test_replayed_steps_give_the_references_tokens_and_counts() -> None:
    calls: list[int] = []
    session = session_with(lambda session: Graphs(session.cache, capture=rewound(session, calls)))
    assert tokens_of(session) == WANT  # eager, capturing each decode step after it
    assert (len(session.graphs.captured), calls) == (5, [])  # type: ignore[union-attr]
    for _ in range(2):
        assert tokens_of(session) == WANT  # replayed
        assert session.interpreter.transport.issued == planned(GENERATION.programs[5], 0)
    assert len(calls) == 10
    lengths = [group.count * [group.new + 5] for group in GENERATION.programs[0].step.batch]
    assert session.cache.layers[0].lengths == [length for row in lengths for length in row]


def rewound(session: Session, calls: list[int]) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """As ``run_again``, on the lengths that capture saw: a graph writes where it wrote then."""
    again = run_again(calls)

    def capture(body: Callable[[], None]) -> Callable[[], None]:
        before = {layer: list(held.lengths) for layer, held in session.cache.layers.items()}
        replay = again(body)

        def replayed() -> None:
            for layer, row in before.items():
                session.cache.layers[layer].lengths = list(row)
            replay()

        return replayed

    return capture


def test_a_step_that_cannot_be_captured_runs_eagerly_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    def capture(body: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    with caplog.at_level(logging.WARNING):
        session = session_with(lambda session: Graphs(session.cache, capture=capture))
        assert tokens_of(session) == WANT
        assert tokens_of(session) == WANT
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "decode step 1 and later ones run without CUDA graphs: "
        "RuntimeError: operation not permitted when stream is capturing"
    )


def test_without_a_gpu_real_capture_falls_back_too() -> None:
    session = session_with(lambda session: Graphs(session.cache, capture=cuda_capture))
    assert tokens_of(session) == WANT
    assert session.graphs is not None
    assert (session.graphs.captured == {}) == (session.graphs.problem is not None)


def test_graphs_are_off_unless_asked_for_and_need_a_gpu() -> None:
    transport = MailboxTransport(0, Post(), Turns(0))
    asked = Session(replace(GENERATION, graphs=True), 0, transport, NoProgress(), device=torch.device("cpu"))
    assert asked.graphs is None
