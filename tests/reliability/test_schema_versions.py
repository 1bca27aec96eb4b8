"""Every file says which version of its schema it has; another version is refused by name, with what to do about it.

Nothing migrates yet: all schemas are at version 1. A schema that moves on must either read version 1 or refuse it as
here, and the samples of this test stay what version 1 was.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulator import presets
from simulator.errors import SpecError
from simulator.formats.files import load, to_json
from simulator.profile import load_profile
from simulator.schemas import RECORDS
from simulator.schemas import record as record_of
from tests.reliability.parsers import SERVED
from tests.reliability.scale import DATA, record
from tests.test_verify import problem
from tests.test_verify import text as allocation_text


def samples() -> dict[str, dict[str, Any]]:
    """A valid file of every schema, as plain values."""
    one = problem()
    profile = load_profile("a100-sxm4-80gb")
    texts = {
        "model": to_json(one.model),
        "cluster": to_json(one.cluster),
        "workload": to_json(one.workload),
        "scenario": to_json(presets.scenario("fa-pool")),
        "profile": to_json(profile.model_copy(update={"kernels": profile.kernels[:1]})),
        "allocation": allocation_text(),
        "serving-log": SERVED,
        "measurement": (DATA / "measurement.json").read_text(),
    }
    return {name: json.loads(text) for name, text in texts.items()}


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_this_version_is_read_and_any_other_is_refused_by_name_with_a_remedy(name: str, tmp_path: Path) -> None:
    path, sample = tmp_path / f"{name}.json", samples()[name]
    path.write_text(json.dumps(sample))
    loaded = load(path, record_of(name))
    assert json.loads(to_json(loaded))["schema_version"] == sample["schema_version"] == 1
    refused = 0
    for version in (0, 2, 99, -1, "1", None, 1.5):
        path.write_text(json.dumps({**sample, "schema_version": version, "a_key_of_that_version": 1}))
        with pytest.raises(SpecError) as caught:
            load(path, record_of(name))
        message = str(caught.value)
        assert message.startswith(f"{path}: schema_version: this attnplan reads version 1, got {version!r}; make")
        assert "update attnplan" in message
        refused += 1
    record("schema migrations", files=1, versions_refused=refused)


def test_every_record_that_is_a_file_has_a_sample_here() -> None:
    assert set(samples()) == set(RECORDS)
