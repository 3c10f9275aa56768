"The commands, as a user calls them: same numbers twice, nothing lost when killed, clear errors"

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import tiny
from talking_heads.base.core import *
from talking_heads.paper.handing_in import broken_seal, read_seal
from talking_heads.paper.sections import *
from talking_heads.base.store import *

bin = Path(sys.executable).parent
few = [
    x
    for k, v in dict(
        n_prompts=30,
        n_ablate=12,
        n_list=12,
        n_list_other=6,
        list_lengths="[2,3,5]",
        list_lengths_other="[3]",
        n_steer=8,
        steer_steps=2,
        n_scale=8,
        n_forecast=6,
        lift_steps=4,
        n_lift=8,
    ).items()
    for x in ("-p", k, str(v))
]


def th(*args, **kw):
    return subprocess.run([str(bin / args[0]), *map(str, args[1:])], capture_output=True, text=True, timeout=600, **kw)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save("llama", tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    "One finished run on a tiny model"
    out = tmp_path_factory.mktemp("runs") / "a"
    r = th("th_paper", "--model", folder, "--out", out, *few)
    assert r.returncode == 0, r.stderr
    return out, r


def timeless(results):
    "Results without what may differ between two runs of the same command"
    for k in ("seconds", "steps"):
        results["provenance"].pop(k)
    return results


@pytest.mark.slow
def test_run_folder(run, folder):
    out, r = run
    results = read_results(out)
    assert results["model"] == folder.name and "Traceback" not in r.stderr
    steps = results["provenance"]["steps"]
    assert steps["heads"] > 0 and results["provenance"]["seconds"] == pytest.approx(sum(steps.values()), abs=0.1)
    assert not broken_seal(out) and read_seal(out)["notebook"] == "paper"
    for f in ("paper.ipynb", "paper.html", "results.json"):
        assert str(out / f) in r.stdout
    charts = {p.stem for p in (out / "charts").iterdir()}
    assert len(charts) >= 4 and all(
        (out / "charts" / f"{c}.{e}").stat().st_size for c in charts for e in ("json", "svg", "parquet")
    )
    nb = json.loads((out / "paper.ipynb").read_text())
    assert not [
        o for c in nb["cells"] for o in c.get("outputs", []) if o["output_type"] == "error" or o.get("name") == "stderr"
    ]
    by_n = read_results(out)["laundry_list"]["by_n"]
    assert (
        list(by_n) == ["2", "3", "5"]
        and by_n["5"]["n"] == 12
        and set(by_n["5"]["by_position"]) == {"1", "2", "3", "4", "5"}
    )
    lists = pd.read_parquet(out / "tables" / "list_things_3.parquet")
    assert by_n["3"]["accuracy"] == pytest.approx(lists.correct.mean(), abs=1e-6)


@pytest.mark.slow
def test_killed_and_resumed_with_the_same_numbers(run, folder, tmp_path):
    "Every number is computed anew, some before the kill and the rest after it, and equals that of the run in one piece"
    out = tmp_path / "c"
    p = subprocess.Popen(
        [str(bin / "th_paper"), "--model", str(folder), "--out", str(out), *few],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (out / "tables" / "heads.parquet").exists():
        time.sleep(0.05)
        assert p.poll() is None
    p.send_signal(signal.SIGTERM)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130 and "--resume" in err and "Traceback" not in err
    stamp = (out / "tables" / "heads.parquet").stat().st_mtime_ns
    assert (
        not list((out / "tables").glob(".*")) and (out / "paper.ipynb").exists() and not (out / "results.json").exists()
    )
    other = th("th_paper", "--model", folder, "--out", out, "--resume", "--seed", 5, *few)
    assert other.returncode == 1 and "other settings (seed" in other.stderr
    assert th("th_paper", "--model", folder, "--out", out, "--resume", *few).returncode == 0
    assert (out / "tables" / "heads.parquet").stat().st_mtime_ns == stamp
    assert timeless(read_results(out)) == timeless(read_results(run[0]))


@pytest.mark.parametrize(
    "args,says",
    [
        (["--model", "smolm2"], "Nearest: smollm2"),
        (["--model", "EleutherAI/pythia-160m"], "cannot be reached"),
        (["--model", "./nowhere"], "not a folder"),
        (["-p", "n_promts", "3"], "no parameter 'n_promts'"),
    ],
)
def test_bad_arguments(args, says, tmp_path):
    r = th("th_paper", "--out", tmp_path / "x", *args, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert r.returncode == 1 and says in r.stderr and "Traceback" not in r.stderr


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    r = th("th_paper", "--out", tmp_path / "file" / "run")
    assert r.returncode == 1 and "Cannot write" in r.stderr and "Traceback" not in r.stderr


def test_th_model(folder):
    r = th("th_model", folder)
    assert r.returncode == 0 and "source local" in r.stdout and sha256(folder / "model.safetensors") in r.stdout
    r = th("th_model", "gtp2")
    assert r.returncode == 1 and "Nearest" in r.stderr


def test_help_is_light():
    "`--help` must not pay for torch"
    heavy = "('torch', 'transformers', 'papermill')"
    code = f"import sys, talking_heads.commands; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert "seed of every prompt" in th("th_paper", "--help").stdout


def test_results_are_validated(tmp_path):
    (tmp_path / "results.json").write_text('{"schema_version": 99}')
    with pytest.raises(OutputError, match="version 99"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(OutputError, match="not valid JSON"):
        read_results(tmp_path)
    with pytest.raises(OutputError, match="Run th_paper first"):
        read_results(tmp_path / "none")


def test_run_folder_keeps_what_is_not_its_own(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder(tmp_path, {"a": 1}).step("t", lambda: pd.DataFrame({"x": [1]}))
    RunFolder(tmp_path, {"a": 2})
    assert (tmp_path / "notes.txt").read_text() == "mine" and not (tmp_path / "tables" / "t.parquet").exists()


@pytest.mark.parametrize("theirs", ["results.json", "paper.html", "paper.ipynb", "tables/mine.csv", "charts/mine.svg"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_foreign_folder_is_refused(tmp_path, theirs, resume):
    (tmp_path / theirs).parent.mkdir(exist_ok=True)
    (tmp_path / theirs).write_text("mine")
    with pytest.raises(OutputError, match="no run of this package"):
        RunFolder(tmp_path, {}, resume)
    assert (tmp_path / theirs).read_text() == "mine" and not (tmp_path / "tables" / "key.json").exists()


def test_failed_step_leaves_nothing(tmp_path):
    run = RunFolder(tmp_path, {})
    with pytest.raises(ZeroDivisionError):
        run.step("bad", lambda: 1 / 0)
    assert [p.name for p in (tmp_path / "tables").iterdir()] == ["key.json"]
