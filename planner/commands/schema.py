"""``plan schema NAME``: the JSON Schema of a file."""

from __future__ import annotations

import argparse
import json

from simulator import schemas


def print_schema(arguments: argparse.Namespace) -> int:
    print(json.dumps(schemas.schema(arguments.name), indent=2))
    return 0
