"""``plan paper``: one row a statement of the documents, with what attnplan computes and the verdict that follows."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from planner.commands.output import progress, table, to_terminal
from planner.paper.statement import DOCUMENTS, Statement
from simulator.errors import SpecError


def paper(arguments: argparse.Namespace) -> int:
    if arguments.document is not None and arguments.document not in DOCUMENTS:
        known = ", ".join(f"{letter} ({name})" for letter, name in DOCUMENTS.items())
        raise SpecError(f"--document: unknown {arguments.document!r}; known: {known}")
    statements = statements_of(arguments.document)
    if arguments.json:
        print(json.dumps([as_json(row) for row in statements], indent=2, ensure_ascii=False))
    else:
        show(statements)
    return 0


def statements_of(document: str | None) -> tuple[Statement, ...]:
    """All statements, or those of one document by its letter."""
    from planner.paper.statements import rows

    with progress("computing the documents' statements") as update:
        found = rows()
        update(1, 1)
    return tuple(row for row in found if document in (None, row.id[0]))


def as_json(row: Statement) -> dict[str, str]:
    return {**asdict(row), "document": row.document}


def show(statements: tuple[Statement, ...]) -> None:
    """A table a document, then the number of statements by verdict."""
    from planner.paper.statements import counts

    columns = ("", "claim", "ours", "criterion", "assumptions", "verdict", "tag")
    for name in DOCUMENTS.values():
        rows = [
            (row.id, row.claim, row.ours, row.criterion, row.assumptions, row.verdict, row.tag)
            for row in statements
            if row.document == name
        ]
        if rows:
            to_terminal(table(name, columns, rows))
    verdicts = [(verdict, str(count)) for verdict, count in counts(statements).items()]
    to_terminal(table(f"{len(statements)} statements", ("verdict", "statements"), verdicts))
