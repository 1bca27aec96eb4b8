"""Writers killed or starved of disk: a file is old or new, never between, and what cannot be written costs one line."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from simulator.formats.files import to_json, write_atomically
from tests.reliability.scale import ROOT, of, record
from tests.test_verify import problem
from tests.test_verify import text as allocation_text

SIZES = (10_000, 200_000)
KILLS = of(25, 100)
WRITER = """
import sys
from pathlib import Path
from simulator.formats.files import write_atomically
path = Path(sys.argv[1])
print("ready", flush=True)
while True:
    for letter in "ab":
        for size in (10_000, 200_000):
            write_atomically(path, letter * size)
"""


def write_forever(path: Path, begun: Event) -> None:
    begun.set()
    while True:
        for letter in "ab":
            for size in SIZES:
                write_atomically(path, letter * size)


def test_a_writer_killed_again_and_again_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """kill -9 of a real process at a random moment, all over one file."""
    path, chance = tmp_path / "allocation.json", random.Random(0)
    context, seen = multiprocessing.get_context("fork"), set[str]()
    write_atomically(path, "a" * SIZES[0])
    for _ in range(KILLS):
        begun = context.Event()
        writer = context.Process(target=write_forever, args=(path, begun))
        writer.start()
        begun.wait()
        time.sleep(chance.uniform(0.0, 0.02))
        writer.kill()
        writer.join()
        content = path.read_text()
        assert content in {letter * size for letter in "ab" for size in SIZES}, f"{len(content)} characters: torn"
        seen.add(content)
    assert len(seen) > 1, "no writer ever wrote"
    left = [entry.name for entry in tmp_path.iterdir() if entry != path]
    assert all(name.startswith(f".{path.name}.") for name in left), left  # hidden, and never read as the file
    record("atomic writes", kills=KILLS, torn=0, hidden_leftovers=len(left))


def test_leftovers_of_killed_writers_are_swept_and_live_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        left = stopped_while_writing(writer, path)
        write_atomically(path, "ours")
        assert left.exists(), "a live writer's file was taken away"
        writer.kill()
    os.utime(left, (0, 0))  # as if ten minutes had gone by
    write_atomically(path, "ours again")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def stopped_while_writing(writer: subprocess.Popen[bytes], path: Path) -> Path:
    """SIGSTOP until it hits a moment at which a temporary file is there; that file."""
    for _ in range(2000):
        writer.send_signal(signal.SIGSTOP)
        left = [entry for entry in path.parent.iterdir() if entry.name.startswith(f".{path.name}.")]
        if left:
            return left[0]
        writer.send_signal(signal.SIGCONT)
        time.sleep(0.001)
    raise AssertionError("no temporary file was ever seen")


def limited(size: int) -> None:
    """For the child: files of at most ``size`` bytes, and an error instead of a signal beyond."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.fixture(scope="module")
def small_question(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the inputs of a plan that takes seconds."""
    folder, one = tmp_path_factory.mktemp("question"), problem()
    for name, value in (("model", one.model), ("cluster", one.cluster), ("workload", one.workload)):
        (folder / f"{name}.json").write_text(to_json(value))
    (folder / "ops.csv").write_text("op,m,n,k\n" + "gemm,128,4096,4096\n" * 200)
    return folder


COMMANDS = {
    "make": "make --model model.json --cluster cluster.json --workload workload.json --profile a100-sxm4-80gb "
    "--max-gpus 2 -o out.json",
    "predict": "predict a100-sxm4-80gb ops.csv -o out.json",
    "import": "calibrate import nccl-tests run.log -o out.json",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line_exit_2_and_the_old_file(name: str, small_question: Path) -> None:
    """RLIMIT_FSIZE stands for the disk: the write fails half-way, with the temporary file begun."""
    from tests.reliability.parsers import FACTS, LOG

    out = small_question / "out.json"
    out.write_text("old")
    (small_question / "run.log").write_text(LOG)
    (small_question / "run.yaml").write_text(FACTS)
    before = sorted(entry.name for entry in small_question.iterdir())
    command = [sys.executable, "-m", "planner.cli", *(COMMANDS[name].split())]
    done = subprocess.run(
        command, cwd=small_question, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=300, preexec_fn=lambda: limited(1000), check=False,
    )  # fmt: skip
    errors = [line for line in done.stderr.splitlines() if not line.endswith("…")]
    assert done.returncode == 2, done.stderr
    assert errors == ["plan: out.json: cannot be written: File too large"], done.stderr
    assert out.read_text() == "old"
    assert sorted(entry.name for entry in small_question.iterdir()) == before
    record("disk full", command=name, exit=done.returncode)


ON_TMPFS = """
mount -t tmpfs -o size=64k none {folder} && cd {folder} && echo old > out.json && \
exec {python} -c 'from pathlib import Path; from simulator.formats.files import write_atomically
try:
    write_atomically(Path("out.json"), "x" * 200_000)
except Exception as error:
    print(type(error).__name__, error, sorted(p.name for p in Path(".").iterdir()), Path("out.json").read_text())'
"""


def in_a_mount_namespace(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """``script`` where it may mount file systems that nobody else sees; skips where the system does not let us."""
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], cwd=folder, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if any(line.startswith(("unshare:", "mount:")) for line in done.stderr.splitlines()):
        pytest.skip(f"no mount namespaces here: {done.stderr.strip()[:100]}")
    return done


def test_a_full_file_system_keeps_the_old_file(tmp_path: Path) -> None:
    """A real tmpfs of 64 KiB."""
    done = in_a_mount_namespace(ON_TMPFS.format(folder=tmp_path, python=sys.executable), tmp_path)
    assert done.stdout == "SpecError out.json: cannot be written: No space left on device ['out.json'] old\n\n"


RUN = "run plan.json --on cpu --tokens 64 --decode-tokens 24 --repeats 1 -o out/measurement.json"
FULL_DISKS = {
    # (mounted, bytes, exit, what the one line says)
    "measurement": ("out", 16_384, 2, "plan: out/measurement.json: cannot be written: No space left on device"),
    "finished steps": ("tmp", 65_536, 1, "No space left on device; free some space, or set TMPDIR to where there is"),
}


@pytest.mark.parametrize("what", list(FULL_DISKS)[-of(1, 2) :])
def test_a_run_whose_disk_is_full_ends_with_one_line_and_keeps_the_old_file(what: str, tmp_path: Path) -> None:
    """``plan run`` on processes, its measurement or its ranks' finished steps on a tmpfs too small for them."""
    mounted, size, code, line = FULL_DISKS[what]
    one = problem()
    for name, value in ((one.sources.model, one.model), (one.sources.cluster, one.cluster)):
        (tmp_path / name).write_text(to_json(value))
    (tmp_path / one.sources.workload).write_text(to_json(one.workload))
    (tmp_path / "plan.json").write_text(allocation_text())
    for folder in ("out", "tmp"):
        (tmp_path / folder).mkdir()
    done = in_a_mount_namespace(
        f"mount -t tmpfs -o size={size} none {mounted} && echo old > out/measurement.json && "
        f"TMPDIR={tmp_path / 'tmp'} {sys.executable} -m planner.cli {RUN}; "
        f"echo $?; ls -A out tmp; cat out/measurement.json",
        tmp_path,
    )
    errors = [found for found in done.stderr.splitlines() if not found.endswith("…")]
    assert len(errors) == 1, done.stderr
    assert line in errors[0]
    assert what == "measurement" or errors[0].startswith("plan: rank "), errors
    assert done.stdout.splitlines()[-6:] == [str(code), "out:", "measurement.json", "", "tmp:", "old"]
    record("disk full", command=f"run ({what})", exit=code)
