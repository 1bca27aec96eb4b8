"""The command line as a user meets it: fast help, one line and exit 2 for bad input, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from planner.cli import handler, main, parser

HEAVY = ("torch", "streamlit", "sklearn", "scipy", "networkx", "pandas", "numpy", "pydantic")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom planner.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stderr.strip() == "[]"
    assert "make" in found.stdout
    assert "validate" in found.stdout


def test_make_imports_neither_torch_nor_streamlit_nor_sklearn() -> None:
    script = (
        "import sys\nfrom planner.cli import handler\nhandler('make:make')\n"
        "print([name for name in ('torch', 'streamlit', 'sklearn', 'scipy.optimize') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_command_has_a_handler() -> None:
    root = parser()
    for action in root._subparsers._group_actions:  # type: ignore[union-attr]
        for command in action.choices.values():  # type: ignore[union-attr, attr-defined]
            assert callable(handler(command.get_default("handler")))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"name": "x", "bogus": 1}', "bogus"),
        ('{"name": "x", "name": "y"}', "'name' appears twice"),
        ('{"name": NaN}', "NaN"),
        ('{"name": ', "not JSON"),
    ],
)
def test_bad_model_files_are_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, place: str
) -> None:
    path, output = tmp_path / "model.json", tmp_path / "allocation.json"
    path.write_text(text)
    code, out, err = run(capsys, "make", "fa-pool", "--model", str(path), "-o", str(output))
    assert code == 2
    assert out == ""
    assert str(path) in err
    assert place in err
    assert len(err.strip().splitlines()) == 1
    assert not output.exists()


def test_heads_that_do_not_divide_are_refused_with_both_numbers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "model.json"
    config = {
        "name": "odd",
        "hidden_size": 64,
        "num_attention_heads": 7,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 64,
        "layers": [{}],
        "vocab_size": 64,
    }
    path.write_text(json.dumps(config))
    code, _, err = run(capsys, "make", "fa-pool", "--model", str(path), "-o", str(tmp_path / "a.json"))
    assert code == 2
    assert "num_attention_heads 7" in err
    assert "num_key_value_heads 2" in err


def test_a_model_that_cannot_fit_says_which_rank_lacks_how_much(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "a.json"
    code, _, err = run(
        capsys, "make", "fa-pool", "--model", "llama-3.1-70b", "--max-gpus", "1", "--base-gpus", "1", "-o", str(output)
    )
    assert code == 2
    assert "rank" in err
    assert "bytes" in err
    assert len(err.strip().splitlines()) == 1
    assert not output.exists()


def test_unknown_presets_list_the_known_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "make", "fa-pool", "--cluster", "dgx-b300", "-o", str(tmp_path / "a.json"))
    assert code == 2
    assert "unknown 'dgx-b300'" in err
    assert "dgx-a100-5" in err


@pytest.mark.parametrize("name", ["model", "cluster", "workload", "scenario", "profile", "allocation", "measurement"])
def test_schemas_are_printed_as_json(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, _ = run(capsys, "schema", name)
    assert code == 0
    assert json.loads(out)["type"] == "object"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--model", "meta-llama/Llama-3.1-8B"),
            "meta-llama/Llama-3.1-8B: no such file; give the path of its config.json",
        ),
        (
            ("--profile", "a100-sxm4-80gb", "--cluster", "dgx-h200-2", "--max-gpus", "8"),
            "lacks; use h200-sxm for H200-SXM",
        ),
    ],
)
def test_a_wrong_part_says_what_could_be_given_instead(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    code, out, err = run(capsys, "make", "fa-pool", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
