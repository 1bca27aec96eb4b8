"""Value: operations are frozen to the type checker, hashed and compared by content, and copied like any dataclass."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from executor.wire import decode, encode
from simulator.program import Send

ROOT = Path(__file__).parents[1]


def sent(tag: int) -> Send:
    return Send(reads=("x",), writes=(), layer=0, micro_batch=0, to=1, tag=tag, num_bytes=8)


def test_values_of_equal_content_are_one_in_sets_and_on_the_wire() -> None:
    assert sent(1) == sent(1) != sent(2)
    assert len({sent(1), sent(1), sent(2), replace(sent(2), tag=1)}) == 2
    again = decode(encode([sent(1), sent(1), sent(2)]))
    assert again == [sent(1), sent(1), sent(2)]
    assert again[0] is again[1]
    assert pickle.loads(pickle.dumps(sent(3))) == sent(3)


def test_the_type_checker_lets_nobody_assign_to_a_value(tmp_path: Path) -> None:
    source = tmp_path / "change.py"
    source.write_text("from simulator.program import Add\n\n\ndef change(one: Add) -> None:\n    one.layer = 1\n")
    done = subprocess.run([sys.executable, "-m", "mypy", source], cwd=ROOT, capture_output=True, text=True, check=False)
    assert 'change.py:5: error: Property "layer" defined in "Add" is read-only' in done.stdout
    assert "Found 1 error" in done.stdout
