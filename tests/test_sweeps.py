"Sweeps: the runs of a file, and nothing lost or done twice when runs, workers or the sweep itself die"

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from talking_heads import commands
from talking_heads.paper import sweeps
from talking_heads.base.core import *
from talking_heads.base.store import RunFolder
from talking_heads.paper.sections import read_results
from talking_heads.paper.sweeps import *

bin, models = Path(sys.executable).parent, ["a", "b", "c", "d"]

# A stand-in for th_paper: four steps that are kept, results at the end, and a log of everything it does.
# "bad" fails; "crash" dies once by a signal and "doomed" always does; "moved" refuses to resume, as RunFolder does
# after a change.
script = """
import json, os, pathlib, signal, sys, time
folder, model, seed, seconds = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
resume = "--resume" in sys.argv
def log(*words):
    with open(folder.parent/"log.txt", "a") as f: f.write(" ".join(map(str, (model, seed, *words)))+"\\n")
log("start", "resumed" if resume else "fresh", os.getpid())
if model == "bad" and not (folder.parent/"repaired").exists(): sys.exit("  loading\\nNo such thing.\\nLook again.")
if model == "moved" and resume: sys.exit("The run was made with other settings (device), so it cannot be resumed.")
for i in range(4):
    step = folder/f"step{i}"
    if step.exists() and resume: continue
    time.sleep(seconds)
    step.write_text("")
    log("step", i)
    if model == "moved" and not (folder.parent/"again").exists():
        (folder.parent/"again").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if model == "doomed" or (i == 1 and model == "crash" and not resume): os.kill(os.getpid(), signal.SIGKILL)
(folder/"results.json").write_text(json.dumps({"score": {"n": 10, "value": seed+.5, "value_ci": [seed, seed+1]}}))
log("end")
"""


def job(seconds, folder):
    "A job function: the stand-in with `seconds` for each step"
    return lambda r, out: ["python", folder / "job.py", out, r.model, r.seed, seconds]


@pytest.fixture
def out(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "job.py").write_text(script)
    return tmp_path / "sweep"


def tasks(out, models, seeds=(0,), seconds=0.0, **kw):
    return plan(expand({"models": [{"name": m} for m in models], "seeds": list(seeds)}), out, job(seconds, out), **kw)


def log(out):
    "What the runs did, as (model, seed, words...)"
    return [tuple(o.split()) for o in (out / "log.txt").read_text().splitlines()] if (out / "log.txt").exists() else []


def ends(out):
    return Counter(o[:2] for o in log(out) if o[2] == "end")


def quiet(line):
    pass


def alive(pid):
    "Is a process there, and not just waiting to be collected?"
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(f, seconds=60):
    "Wait until `f` holds"
    end = time.monotonic() + seconds
    while not f():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


# From a file to runs


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from("gpt2 a/b a/c d".split()), min_size=1, unique=True),
    st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from(["step1", "step2"]), unique=True),
    st.lists(st.integers(0, 9), max_size=3, unique=True),
)
def test_expansion_is_the_product(names, seeds, revisions, values):
    spec = {"models": [{"name": n} for n in names], "seeds": seeds, "parameters": {"template": "things"}}
    if revisions:
        spec["revisions"] = revisions
    if values:
        spec["vary"] = {"n_prompts": values}
    runs = expand(spec)
    want = {(n, r, v, s) for n, r, v, s in product(names, revisions or [None], values or [None], seeds)}
    assert {(r.model, r.revision, r.parameters.get("n_prompts"), r.seed) for r in runs} == want and len(runs) == len(
        want
    )
    assert len({r.name for r in runs}) == len({r.key for r in runs}) == len(runs) and all(
        r.parameters["template"] == "things" for r in runs
    )


def test_names_stay_when_a_file_grows():
    few = expand({"models": [{"name": "gpt2"}], "seeds": [1]})[0]
    many = expand({"models": [{"name": "d"}, {"name": "gpt2"}], "seeds": [0, 1, 2], "title": "x"})
    assert few in many and few.name in {r.name for r in many} and few.name.startswith("gpt2-seed1-")
    changed = [dict(dtype="float16"), dict(device="cuda:1"), dict(parameters={"n_prompts": 1}), dict(revision="x")]
    assert len({few.name, *(PlannedRun(**{"model": "gpt2", "seed": 1} | c).name for c in changed)}) == 5


def test_models_have_their_own_settings():
    runs = expand(
        {
            "models": [{"name": "x", "seeds": [7], "dtype": "bfloat16", "parameters": {"n": 1}}, {"name": "y"}],
            "device": "cpu",
            "parameters": {"n": 2, "m": 3},
            "vary": {"k": [1, 2]},
        },
        {"m": 4},
    )
    assert [(r.model, r.seed, r.dtype, r.device, r.parameters) for r in runs] == [
        ("x", 7, "bfloat16", "cpu", {"n": 1, "m": 4, "k": 1}),
        ("x", 7, "bfloat16", "cpu", {"n": 1, "m": 4, "k": 2}),
        ("y", 0, "float32", "cpu", {"n": 2, "m": 4, "k": 1}),
        ("y", 0, "float32", "cpu", {"n": 2, "m": 4, "k": 2}),
    ]


def test_a_folder_is_known_by_its_weights(tmp_path):
    tiny.save("gpt2", tmp_path / "m", seed=0)
    (tmp_path / "x.toml").write_text('[[models]]\nname = "./m"')
    a = load_sweep(tmp_path / "x.toml")[0]
    assert (
        a.model == str(tmp_path / "m")
        and a.weights == sha256(tmp_path / "m" / "model.safetensors")
        and a.name.startswith("m-seed0-")
    )
    tiny.save("gpt2", tmp_path / "m", seed=1)
    assert load_sweep(tmp_path / "x.toml")[0].key != a.key


@pytest.mark.parametrize(
    "text,says",
    [
        ("models = [", "not valid TOML"),
        ("", "'models' is a required property"),
        ("models = []", "models"),
        ('[[models]]\nname = ""', "models.0.name"),
        ('[[model]]\nname = "x"', "did you mean 'models'"),
        ('seed = [1]\n[[models]]\nname = "x"', "did you mean 'seeds'"),
        ('seeds = [1.5]\n[[models]]\nname = "x"', "seeds.0"),
        ('seeds = []\n[[models]]\nname = "x"', "seeds"),
        ('seeds = [1, 1]\n[[models]]\nname = "x"', "seeds"),
        ('[[models]]\nname = "x"\ndtype = "int3"', "models.0.dtype"),
        ('[[models]]\nname = "x"\nrevision = "a"\nrevisions = ["b"]', "not both"),
        ('[vary]\nn = 3\n[[models]]\nname = "x"', "vary.n"),
        ('[parameters]\nseed = 3\n[[models]]\nname = "x"', "'seed' is no parameter"),
        ('[vary]\nout = ["x"]\n[[models]]\nname = "x"', "'out' is no parameter"),
        ('[[models]]\nname = "x"\n[[models]]\nname = "x"', "comes twice"),
        ('[[models]]\nname = "./nowhere"', "not a folder"),
    ],
)
def test_bad_files(tmp_path, text, says):
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(TalkingHeadsError, match=says):
        load_sweep(tmp_path / "x.toml")


def test_bad_paths(tmp_path):
    with pytest.raises(SweepError, match="Ready are: .*paper"):
        load_sweep("nothing")
    with pytest.raises(SweepError, match="neither"):
        load_sweep(tmp_path)
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SweepError, match="not valid TOML"):
        load_sweep(tmp_path / "x.toml")


@pytest.mark.parametrize("name", ready_sweeps())
def test_ready_files(name, tmp_path):
    "Each expands, names only parameters that the paper notebook has, and says what it is"
    todo, title = commands._sweep_tasks(name, tmp_path, [], 1, retries=1, keep_old=False)
    assert todo and title != name
    have = {t["run"]["model"] for t in todo}
    if name == "paper":
        assert have == {"gpt2", "EleutherAI/pythia-160m"}
    if name == "pythia":
        assert len(have) == 9 and "step1000" in {t["run"]["revision"] for t in todo}


def test_the_command_is_what_was_asked_for():
    "th_paper reads back every parameter as it was, whatever its type"
    params = {"a": 3, "b": "3", "c": [1, 2], "d": True, "e": "things", "f": -1.5, "g": None}
    cmd = paper_command(PlannedRun("gpt2", 4, "step1", "float16", "cuda:1", params), Path("x"))
    assert cmd[:11] == [
        "th_paper",
        "--model",
        "gpt2",
        "--seed",
        "4",
        "--out",
        "x",
        "--dtype",
        "float16",
        "--revision",
        "step1",
    ]
    at = [i for i, o in enumerate(cmd) if o == "-p"]
    assert {cmd[i + 1]: commands._value(cmd[i + 2]) for i in at} == params


# Failures, and what is kept


def test_one_failure_stops_nobody_and_nothing_is_repeated(out):
    todo = tasks(out, ["a", "bad", "b"], seeds=[0, 1])
    said = []
    table = sweep(todo, jobs=2, say=said.append)
    assert table.groupby("status").name.nunique().to_dict() == {"finished": 4, "failed": 2} and len(said) == 6
    bad = table[table.status == "failed"]
    assert set(bad.reason) == {"No such thing. Look again."} and bad.value.isna().all() and set(bad.model) == {"bad"}
    good = table[(table.status == "finished") & (table.seed == 1)]
    assert (good.value == 1.5).all() and (good.low == 1).all() and (good.high == 2).all() and (good.n == 10).all()
    for read in (pd.read_parquet(out / "sweep.parquet"), pd.read_csv(out / "sweep.csv", keep_default_na=False)):
        assert list(read.name) == list(table.name)
    assert "No such thing" in (out / "sweep.html").read_text()
    before = {t["name"]: Path(t["folder"], "results.json").stat().st_mtime_ns for t in todo if "bad" not in t["name"]}
    (out / "repaired").touch()
    again = sweep(todo, say=said.append)
    assert (
        set(again.status) == {"finished"}
        and set(ends(out).values()) == {1}
        and len(ends(out)) == 6
        and "4 of 6 runs are finished already" in said
    )
    assert {n: (out / n / "results.json").stat().st_mtime_ns for n in before} == before
    assert [o[3] for o in log(out) if o[0] == "bad" and o[2] == "start"] == ["fresh", "fresh", "resumed", "resumed"]
    n = len(log(out))
    assert set(sweep(todo, say=quiet).status) == {"finished"} and len(log(out)) == n


def test_what_counts_as_finished(out):
    todo = tasks(out, ["a"], code={"notebook": "1"})
    assert state(todo[0]) == ("new", "")
    sweep(todo, say=quiet)
    assert state(todo[0])[0] == "finished"
    new, kept = (tasks(out, ["a"], code={"notebook": "2"}, keep_old=k) for k in (False, True))
    assert state(new[0])[0] == "old" and state(kept[0])[0] == "finished"
    assert set(sweep(kept, say=quiet).code) == {"old"} and ends(out)["a", "0"] == 1
    assert set(sweep(new, say=quiet).code) == {""} and ends(out)["a", "0"] == 2
    assert [o[3] for o in log(out) if o[2] == "start"] == ["fresh", "fresh"]  # steps of other code are not reused
    results = Path(new[0]["folder"]) / "results.json"
    results.write_text(results.read_text().replace("10", "11"))
    assert state(new[0])[0] == "broken"

    def never(folder):
        raise OutputError("breaks its schema")

    sweep(new, say=quiet)
    assert state(new[0])[0] == "finished" and state(new[0], never) == ("broken", "breaks its schema")
    results.unlink()
    assert state(new[0])[0] == "broken"
    (Path(new[0]["folder"]) / "sweep.json").write_text("[1")
    assert state(new[0])[0] == "new"


def test_a_killed_run_goes_on_where_it_was(out):
    table = by_run(sweep(tasks(out, ["crash", "doomed"], retries=1), say=quiet)).set_index("name")
    crash, doomed = (table[table.index.str.startswith(m)].iloc[0] for m in ("crash", "doomed"))
    assert crash.status == "finished" and crash.attempts == 2
    assert [o[2:4] for o in log(out) if o[0] == "crash" and o[2] != "start"] == [("step", str(i)) for i in range(4)] + [
        ("end",)
    ]
    assert doomed.status == "failed" and "SIGKILL" in doomed.reason


def test_a_run_that_cannot_be_resumed_starts_again(out):
    assert set(sweep(tasks(out, ["moved"]), say=quiet).status) == {"finished"}
    assert [o[3] for o in log(out) if o[2] == "start"] == ["fresh", "resumed", "fresh"] and ends(out)["moved", "0"] == 1


def test_a_run_folder_refuses_in_the_words_that_sweeps_know(tmp_path):
    RunFolder(tmp_path, {"a": 1})
    with pytest.raises(OutputError, match=sweeps._refused):
        RunFolder(tmp_path, {"a": 2}, resume=True)


def test_success_without_results_is_a_failure(out):
    todo = plan([PlannedRun("a")], out, lambda r, f: ["python", "-c", "pass"])
    assert "left no results.json" in sweep(todo, say=quiet).reason[0]
    todo = plan([PlannedRun("b")], out, lambda r, f: ["no-such-command"])
    assert "no-such-command" in sweep(todo, say=quiet).reason[0]


def test_one_sweep_at_a_time(out):
    with sweeps._claimed(out), pytest.raises(SweepError, match="Another th_sweep"):
        sweep(tasks(out, ["a"]), say=quiet)
    (out.parent / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"):
        sweep(plan([PlannedRun("a")], out.parent / "file" / "x"), say=quiet)


# The sweep itself is interrupted or killed


@pytest.fixture
def running(out):
    "A sweep in a process of its own: one quick run, then two slow ones side by side"
    code = f"""
import sys
from pathlib import Path
from talking_heads.paper.sweeps import *
out, scheduler = Path({str(out)!r}), (sys.argv[1:] or [None])[0]
runs = expand({{"models": [{{"name": "a"}}, {{"name": "b"}}, {{"name": "c"}}, {{"name": "d"}}]}})
job = lambda r, folder: ["python", out/"job.py", folder, r.model, r.seed, 0 if r.model == "a" else .6]
if __name__ == "__main__": sweep(plan(runs, out, job), 2, scheduler, say=lambda l: None)
"""
    (out / "run.py").write_text(code)
    started = []

    def start(*args):
        started.append(
            subprocess.Popen([sys.executable, str(out / "run.py"), *args], stderr=subprocess.PIPE, text=True)
        )
        until(lambda: ends(out)["a", "0"] and len({o[0] for o in log(out) if o[0] in "bcd" and o[2] == "step"}) >= 2)
        return started[-1]

    yield start
    for p in started:
        if p.poll() is None:
            p.kill()
            p.wait()


def pids(out):
    return [int(o[4]) for o in log(out) if o[2] == "start"]


@pytest.mark.slow
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_sweep_leaves_no_process_and_goes_on(out, running, sig):
    p = running()
    p.send_signal(sig)
    p.communicate(timeout=60)
    assert p.returncode != 0
    until(lambda: not any(map(alive, pids(out))), 20)
    assert set(ends(out)) == {("a", "0")} and "d" not in {o[0] for o in log(out)}
    if sig != signal.SIGKILL:  # whoever is killed outright writes no table
        table = by_run(pd.read_parquet(out / "sweep.parquet"))
        assert Counter(table.status) == {"finished": 1, "unfinished": 2, "new": 1} and "not run yet" in set(
            table.reason
        )
    subprocess.run([sys.executable, str(out / "run.py")], check=True, timeout=120)
    assert (
        set(ends(out).values()) == {1}
        and len(ends(out)) == 4
        and max(Counter(o[:4] for o in log(out) if o[2] == "step").values()) == 1
    )


# On a cluster


@pytest.fixture(scope="module")
def cluster():
    "A scheduler and two workers, each a process of its own"
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as c:
        yield c


@pytest.mark.slow
def test_a_worker_killed_midway_costs_nothing(out, cluster):
    "Four runs on two workers, one of them killed: all four results, none computed twice to the end"
    from threading import Thread

    def kill():
        until(lambda: len({o[0] for o in log(out) if o[2] == "step"}) >= 2)  # both workers are in the middle of a run
        with connect(cluster.scheduler_address) as c:
            os.kill(next(iter(c.run(os.getpid).values())), signal.SIGKILL)

    killer = Thread(target=kill)
    killer.start()
    table = sweep(tasks(out, models, seconds=0.7), scheduler=cluster.scheduler_address, say=quiet)
    killer.join()
    assert set(table.status) == {"finished"} and set(table.model) == set(models) and (table.value == 0.5).all()
    assert ends(out) == {(m, "0"): 1 for m in models}
    starts = Counter(o[0] for o in log(out) if o[2] == "start")
    assert sorted(starts.values()) == [1, 1, 1, 2]  # the one that was hit was started again
    hit = starts.most_common(1)[0][0]
    assert [o[3] for o in log(out) if o[0] == hit and o[2] == "start"] == ["fresh", "resumed"]
    assert max(Counter(o[:4] for o in log(out) if o[2] == "step").values()) == 1  # and no finished step was repeated


@pytest.mark.slow
def test_interrupt_on_a_cluster(out, running, cluster):
    p = running(cluster.scheduler_address)
    p.send_signal(signal.SIGTERM)
    p.communicate(timeout=60)
    assert not any(map(alive, pids(out)))  # it waited for the workers
    assert set(ends(out)) == {("a", "0")}
    subprocess.run([sys.executable, str(out / "run.py"), cluster.scheduler_address], check=True, timeout=120)
    assert set(ends(out).values()) == {1} and len(ends(out)) == 4


@pytest.mark.parametrize(
    "address,says",
    [
        ("tcp://127.0.0.1:9", "cannot be reached"),
        ("nonsense://x", "cannot be reached"),
        ("nowhere.json", "no scheduler file"),
    ],
)
def test_no_scheduler(out, address, says):
    pytest.importorskip("distributed")
    start = time.monotonic()
    with pytest.raises(SweepError, match=says):
        sweep(tasks(out, ["a"]), scheduler=address, say=quiet)
    assert time.monotonic() - start < 30 and not log(out)


def test_dask_is_optional(out, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SweepError, match="pip install distributed"):
        sweep(tasks(out, ["a"]), scheduler="tcp://x:1", say=quiet)
    assert set(sweep(tasks(out, ["a"]), say=quiet).status) == {"finished"}


def test_a_worker_that_does_not_fit(out):
    "No shared folder, or another version of the package: the reason is in the outcome, and nothing is run"
    task = tasks(out, ["a"])[0]
    assert "cannot be seen" in run_task(task)["reason"]
    sweeps._tell(out, "go")
    assert "other code of talking_heads" in run_task(task | {"code": {"package": "x"}})["reason"]
    sweeps._tell(out, "stop")
    assert run_task(task)["status"] == "stopped" and not log(out)


# The table


def test_flatten():
    rows = pd.DataFrame(
        flatten(
            {
                "schema_version": 1,
                "model": "x",
                "provenance": {"seconds": 3.0, "seed": 1},
                "heads": {"mover": [{"head": "1.2", "score": 0.5, "ci": [0.4, 0.6]}]},
                "removal": {
                    "n": 7,
                    "component": "1.2.3",
                    "fall": 0.1,
                    "ci": [0.0, 0.2],
                    "largest_other": 0.05,
                    "everywhere": {"removed": {"score": 0.3, "ci": [0.2, 0.4], "accuracy": 1.0}},
                },
                "forecast": {
                    "n": 5,
                    "auroc": 0.7,
                    "auroc_ci": [0.6, 0.8],
                    "confidence": 0.6,
                    "confidence_ci": [0.5, 0.7],
                    "worst": [{"n_items": 8, "position": 2, "failure": 0.9, "low": 0.8, "high": 1.0, "n": 4}],
                },
                "audit": {"passed": True, "failed": ["kl", "ioi"]},
                "verdicts": [{"claim": "c1", "title": "t", "verdict": "partly", "reason": "r", "rule": "x"}],
            }
        )
    )
    rows = rows.set_index(["section", "metric", "group"])
    span = lambda *k: tuple(rows.loc[k, ["value", "low", "high"]].tolist())
    assert span("heads", "score", "mover 1.2") == (0.5, 0.4, 0.6) and span("removal", "fall", "") == (0.1, 0.0, 0.2)
    assert span("removal", "score", "everywhere removed") == (0.3, 0.2, 0.4) and all(
        map(pd.isna, span("removal", "accuracy", "everywhere removed")[1:])
    )
    assert span("forecast", "auroc", "") == (0.7, 0.6, 0.8) and span("forecast", "confidence", "") == (0.6, 0.5, 0.7)
    assert (
        span("forecast", "failure", "worst 8 2") == (0.9, 0.8, 1.0) and rows.n["forecast", "failure", "worst 8 2"] == 4
    )
    assert (
        rows.text["removal", "component", ""] == "1.2.3"
        and rows.text["audit", "failed", ""] == "kl ioi"
        and rows.value["audit", "passed", ""] == 1
    )
    assert (
        rows.text["verdicts", "verdict", "c1"] == "partly"
        and rows.value["provenance", "seconds", ""] == 3
        and pd.isna(span("removal", "largest_other", "")[1])
    )


def test_side_by_side_and_chart(out):
    table = sweep(tasks(out, ["a", "b", "bad"], seeds=[2]), say=quiet)
    assert side_by_side(table).iloc[0].tolist() == ["2.5 [2, 3]"] * 2
    spec = metric_chart(table, "score", "value", title="t").to_dict()
    assert "2 runs" in spec["description"] and "2.5" in spec["description"]
    with pytest.raises(TalkingHeadsError, match="No finished run"):
        metric_chart(table, "score", "nothing")


# The real thing


def th(*args):
    return subprocess.run([str(bin / "th_sweep"), *map(str, args)], capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_th_sweep(tmp_path):
    "One run of th_paper on a tiny model, one that cannot be had: the table, the page, the exit codes"
    tiny.save("llama", tmp_path / "m")
    numbers = dict(
        n_prompts=20, n_ablate=8, n_list=8, n_list_other=4, n_steer=8, steer_steps=2, n_scale=8, n_forecast=6
    )
    lists = dict(list_lengths=[2, 3], list_lengths_other=[3], steer_lengths=[3])
    few = "\n".join(f"{k} = {v}" for k, v in (numbers | lists).items()) + '\nhow = "quick"'
    (tmp_path / "x.toml").write_text(
        f'title = "Trial"\n[parameters]\n{few}\n[[models]]\nname = "./m"\n[[models]]\nname = "nobody/nothing"'
    )
    args = [tmp_path / "x.toml", "--out", tmp_path / "out"]
    r = th(*args, "--dry-run")
    assert r.returncode == 0 and "0 of 2 runs are finished" in r.stdout and not (tmp_path / "out").exists()
    r = th(*args)
    assert (
        r.returncode == 2
        and "1 of 2 runs are finished" in r.stdout
        and "cannot be reached" in r.stdout
        and "Traceback" not in r.stderr
    )
    table = pd.read_parquet(tmp_path / "out" / "sweep.parquet")
    name = table.name[table.status == "finished"].iloc[0]
    results = read_results(tmp_path / "out" / name)
    row = table[(table.section == "ioi") & (table.metric == "accuracy") & (table.group == "")].iloc[0]
    assert [row.value, row.low, row.high] == [results["ioi"]["accuracy"], *results["ioi"]["accuracy_ci"]]
    assert f"{name}/paper.html" in (tmp_path / "out" / "sweep.html").read_text()
    assert "1 of 2 runs are finished" in th(*args, "--dry-run").stdout


@pytest.mark.parametrize(
    "args,says",
    [
        (["nothing"], "Ready are"),
        (["paper", "-p", "n_promts", "3"], "no parameter 'n_promts'"),
        (["paper", "--jobs", "0"], "--jobs 0"),
        (["paper", "--scheduler", "nowhere.json"], "no scheduler file"),
    ],
)
def test_bad_arguments(tmp_path, args, says):
    r = th(*args, "--out", tmp_path / "out")
    assert r.returncode == 1 and says in r.stderr and "Traceback" not in r.stderr
