"""No file, frame or page can make this project run code: a gate over every module's syntax tree.

What unpickles, evaluates or hands text to a shell is listed with the reason why what it reads is our own; anything else
fails here. The list names folder or file and call, so that it cannot grow in silence; an entry no longer needed fails
too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.scale import ROOT, record

PACKAGES = ("simulator", "executor", "calibration", "planner", "app", "benchmarks")
MODULES = frozenset(
    {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
)
CALLS = frozenset({"eval", "exec", "compile", "__import__", "os.system", "os.popen"})
UNPICKLING = frozenset({"read_pickle", "to_pickle", "gather_object", "all_gather_object", "broadcast_object_list",
                        "scatter_object_list", "send_object_list", "recv_object_list", "Pipe", "Listener", "Client",
                        "Manager", "ProcessPoolExecutor", "Pool"})  # fmt: skip
ALLOWED = {
    ("planner/", "ProcessPoolExecutor"): "forked children of this process, over pipes nobody else has",
    ("benchmarks/", "ProcessPoolExecutor"): "children of this process, over pipes nobody else has",
    ("executor/runner.py", "all_gather_object"): "between the ranks of one torchrun job, over the job's own group",
}


def findings(path: Path, source: str) -> Iterator[tuple[str, int]]:
    """(what, line) of everything that could run what it reads."""
    for node in ast.walk(ast.parse(source, str(path))):
        match node:
            case ast.Import(names=names):
                yield from ((one.name, node.lineno) for one in names if one.name.split(".")[0] in MODULES)
                yield from ((one.name, node.lineno) for one in names if one.name == "multiprocessing.connection")
            case ast.ImportFrom(module=str(module), names=names):
                if module.split(".")[0] in MODULES or module == "multiprocessing.connection":
                    yield module, node.lineno
            case ast.Call():
                yield from ((what, node.lineno) for what in call_findings(node))


def call_findings(node: ast.Call) -> Iterator[str]:
    name, keywords = ast.unparse(node.func), {word.arg: word.value for word in node.keywords}
    last = name.rpartition(".")[2]
    if name in CALLS or last in UNPICKLING:
        yield last
    if (
        last == "load"
        and name in ("torch.load", "load")
        and name == "torch.load"
        and not is_true(keywords, "weights_only")
    ):
        yield "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and "allow_pickle" in keywords and not is_false(keywords, "allow_pickle"):
        yield "np.load with allow_pickle"
    if name in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.safe_load"):
        yield f"{name}: read files with simulator.formats.files, which is bounded and refuses aliases"
    if "shell" in keywords and not is_false(keywords, "shell"):
        yield "shell=True"


def is_true(keywords: dict[str | None, ast.expr], name: str) -> bool:
    value = keywords.get(name)
    return isinstance(value, ast.Constant) and value.value is True


def is_false(keywords: dict[str | None, ast.expr], name: str) -> bool:
    value = keywords.get(name)
    return isinstance(value, ast.Constant) and value.value is False


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_no_module_unpickles_evaluates_or_calls_a_shell() -> None:
    paths = modules()
    assert len(paths) > 200
    found = {
        (path.relative_to(ROOT).as_posix(), what): line
        for path in paths
        for what, line in findings(path, path.read_text(encoding="utf-8"))
    }
    reasons = {one: [key for key in ALLOWED if one[0].startswith(key[0]) and one[1] == key[1]] for one in found}
    unexpected = [f"{file}:{found[file, what]}: {what}" for (file, what), keys in reasons.items() if not keys]
    assert not unexpected, unexpected
    used = {key for keys in reasons.values() for key in keys}
    assert not set(ALLOWED) - used, "no longer there; take it off the list"
    record("no pickle", modules=len(paths), allowed_with_reason=len(ALLOWED), findings=0)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import pickle", "pickle"),
        ("from joblib import load", "joblib"),
        ("import torch\ntorch.load(f)", "torch.load"),
        ("import torch\ntorch.load(f, weights_only=False)", "torch.load"),
        ("import numpy as np\nnp.load(f, allow_pickle=True)", "np.load"),
        ("import numpy as np\nnp.load(f, allow_pickle=flag)", "np.load"),
        ("import yaml\nyaml.load(f, Loader=yaml.Loader)", "yaml.load"),
        ("import yaml\nyaml.safe_load(f)", "yaml.safe_load"),
        ("eval(text)", "eval"),
        ("exec(text)", "exec"),
        ("import os\nos.system(x)", "system"),
        ("import subprocess\nsubprocess.run(x, shell=True)", "shell=True"),
        ("from multiprocessing.connection import Client", "multiprocessing.connection"),
        ("import multiprocessing\na, b = multiprocessing.Pipe()", "Pipe"),
        ("dist.broadcast_object_list(x)", "broadcast_object_list"),
    ],
)
def test_the_gate_sees_what_it_is_for(source: str, what: str) -> None:
    assert any(found.startswith(what) for found, _ in findings(Path("x.py"), source))


@pytest.mark.parametrize(
    "source",
    [
        *("torch.load(f, weights_only=True)", "np.load(f)", "np.load(f, allow_pickle=False)", "json.loads(x)"),
        *("re.compile(x)", "subprocess.run(x)", "model.eval()", "presets.load(x)"),
    ],
)
def test_the_gate_lets_what_is_safe_pass(source: str) -> None:
    assert not list(findings(Path("x.py"), source))
