"Files and machines: one writer a folder, marks before files, a kernel of our own, nothing left behind, nothing trusted"

import json
import os
import signal
import subprocess
import sys
import threading
import time
import venv
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

import made_results
import tiny
from talking_heads import commands
from talking_heads.base import core
from talking_heads.base.core import *
from talking_heads.base.store import RunFolder, check_run_folder
from talking_heads.paper.sections import read_results

root, bin = Path(__file__).resolve().parents[1], Path(sys.executable).parent
odd_names = ["a run", "run {a}", "run {} #1", "100% ?", "läufe é 日本", "-dash"]


def python(code, *args, **kw):
    "Start a Python with this code and this package"
    kw["env"] = {**kw.get("env", os.environ), "PYTHONPATH": str(root)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw
    )


def says(code, *args, **kw):
    "What it printed"
    out, err = python(code, *args, **kw).communicate(timeout=60)
    assert not err, err
    return out.strip()


def call(f, *args, **kw):
    "Exit code of a command that is called from Python"
    try:
        f(*args, **kw)
    except SystemExit as e:
        return e.code
    return 0


def until(f, seconds=60):
    end = time.monotonic() + seconds
    while not f():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# One writer a folder

take = """
import sys
from talking_heads.base.core import *
try: take_folder(sys.argv[1], "a test")
except InUseError as e: print(e)
else: print("mine")
"""
hold = """
import sys, time
from talking_heads.base.core import *
from talking_heads.base.store import RunFolder
run = RunFolder(sys.argv[1], {}) if len(sys.argv) > 2 else take_folder(sys.argv[1], "th_holder")
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("name", odd_names)
def test_a_lock_comes_and_goes(tmp_path, name):
    with folder_lock(tmp_path / name, "one") as path:
        assert path == tmp_path / name and json.loads((path / ".talking_heads.lock").read_text())["pid"] == os.getpid()
        with folder_lock(path, "a function of its own"):
            pass
        assert (path / ".talking_heads.lock").exists()
    assert not any(tmp_path.iterdir())


def test_the_second_is_told_who_is_first(tmp_path):
    with folder_lock(tmp_path, "th_first"):
        said = says(take, tmp_path)
        assert "in use: th_first" in said and f"process {os.getpid()}" in said and "since 2" in said
        assert says(take, tmp_path, **lock_for_child()) == "mine"  # a child that was let in
    assert says(take, tmp_path) == "mine"


@pytest.mark.parametrize("how", ["lock", "run"])
def test_a_dead_holder_blocks_nobody(tmp_path, how):
    p = python(hold, tmp_path, *(["run"] if how == "run" else []))
    assert p.stdout.readline() == "held\n"
    with pytest.raises(InUseError, match=f"process {p.pid}"):
        RunFolder(tmp_path, {"kind": "scan"} if how == "lock" else {})
    p.kill()
    p.communicate()
    assert (tmp_path / ".talking_heads.lock").exists()
    RunFolder(tmp_path, {})
    assert not (tmp_path / ".talking_heads.lock").exists()  # given back with the object


def test_threads_are_kept_apart(tmp_path):
    said = []

    def other():
        try:
            take_folder(tmp_path, "thread")
        except InUseError as e:
            said.append(str(e))

    with folder_lock(tmp_path, "main"):
        t = threading.Thread(target=other)
        t.start()
        t.join()
    assert len(said) == 1 and "in use: main" in said[0]
    t = threading.Thread(target=other)
    t.start()
    t.join()
    assert len(said) == 1
    core._held[str(tmp_path.resolve())].release()


def test_a_grandchild_keeps_the_lock_of_a_killed_parent(tmp_path):
    "As a kernel does, in the second until it notices"
    code = """
import subprocess, sys, time
from talking_heads.base.core import *
take_folder(sys.argv[1], "parent")
quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
p = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], **quiet, **lock_for_child())
print(p.pid, flush=True)
time.sleep(60)
"""
    p = python(code, tmp_path)
    child = int(p.stdout.readline())
    p.kill()
    p.wait()
    with pytest.raises(InUseError):
        take_folder(tmp_path, "too early")
    os.kill(child, signal.SIGKILL)
    with folder_lock(tmp_path, "free again", wait=5):
        pass


def test_every_command_refuses_a_folder_in_use(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "results.json").write_text(json.dumps(made_results.complete()))
    (tmp_path / "s.toml").write_text('[[models]]\nname = "toy"')
    out = tmp_path / "out"
    jobs = [
        lambda: commands.th_paper(model="toy", out=str(out)),
        lambda: commands.th_scan(model="toy", out=str(out)),
        lambda: commands.th_edit(model="toy", out=str(out), how="tiny"),
        lambda: commands.th_compare(["r", "r"], out=str(out)),
        lambda: commands.th_brief("r", out=str(out / "b.md")),
        lambda: commands.th_sweep("s.toml", out=str(out)),
    ]
    p = python(hold, out)
    assert p.stdout.readline() == "held\n"
    for job in jobs:
        start = time.monotonic()
        assert call(job) == 1 and time.monotonic() - start < 30
        err = capsys.readouterr().err
        assert "in use: th_holder" in err and f"process {p.pid}" in err and "Traceback" not in err
    assert [f.name for f in out.iterdir()] == [".talking_heads.lock"]
    p.kill()
    p.communicate()


# Unusable folders, before anything is loaded


@pytest.fixture
def no_loading(monkeypatch):
    "Whatever loads weights or starts a kernel fails the test"
    import talking_heads.hooks, talking_heads.svd

    def never(*a, **k):
        raise AssertionError("something was loaded")

    monkeypatch.setattr(talking_heads.hooks, "load_model", never)
    monkeypatch.setattr(talking_heads.svd, "attention_weights", never)
    monkeypatch.setattr(commands, "own_kernel", never)
    monkeypatch.setattr(commands, "find_checkpoint", never)


def writers(out):
    "Every command that loads something, with this folder"
    return dict(
        th_paper=lambda: commands.th_paper(model="toy", out=str(out)),
        th_scan=lambda: commands.th_scan(model="toy", out=str(out)),
        th_edit=lambda: commands.th_edit(model="toy", out=str(out), how="tiny"),
    )


@pytest.mark.parametrize("what", ["file", "below a file", "full", "foreign"])
def test_unusable_folders_are_refused_early(tmp_path, what, no_loading, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    out = dict(file=tmp_path / "file").get(what, tmp_path / "out")
    if what == "below a file":
        out = tmp_path / "file" / "run"
    if what == "full":
        monkeypatch.setattr(core.shutil, "disk_usage", lambda p: type("Usage", (), dict(free=5)))
    if what == "foreign":
        out.mkdir()
        for f in ("results.json", "scan.json", "audit.json"):
            (out / f).write_text("mine")
    for name, job in writers(out).items():
        assert call(job) == 1, name
        err = capsys.readouterr().err
        assert "Traceback" not in err and ("Cannot write" in err or "Choose another folder" in err), (name, err)
    if what == "foreign":
        assert {f.name: f.read_text() for f in out.iterdir()} == {
            f: "mine" for f in ("results.json", "scan.json", "audit.json")
        }
    elif what != "file":
        assert not out.exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused_early(tmp_path, no_loading, capsys):
    (tmp_path / "out").mkdir(mode=0o555)
    for job in writers(tmp_path / "out").values():
        assert call(job) == 1 and "Cannot write" in capsys.readouterr().err


def test_kinds_of_folders_do_not_mix(tmp_path, capsys):
    mark_folder(tmp_path, "scan")
    with pytest.raises(OutputError, match="holds a scan"):
        RunFolder(tmp_path, {})
    (tmp_path / "s.toml").write_text('[[models]]\nname = "toy"')
    assert (
        call(commands.th_sweep, str(tmp_path / "s.toml"), out=str(tmp_path)) == 1
        and "holds a scan" in capsys.readouterr().err
    )
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "sweep.csv").write_text("mine")
    assert (
        call(commands.th_sweep, str(tmp_path / "s.toml"), out=str(tmp_path / "t")) == 1
        and "did not make" in capsys.readouterr().err
    )
    assert (tmp_path / "t" / "sweep.csv").read_text() == "mine"


@pytest.mark.parametrize(
    "file,words",
    [
        ("scan.json", "a scan"),
        ("th_edit.json", "an edit"),
        ("comparison.json", "a comparison"),
        ("sweep.parquet", "one of its runs"),
        (".talking_heads.json", "not finished"),
        ("notes.txt", "Run th_paper first"),
    ],
)
def test_th_brief_says_what_a_folder_is(tmp_path, capsys, file, words):
    (tmp_path / file).write_text('{"kind": "paper run"}')
    assert call(commands.th_brief, str(tmp_path)) == 1 and words in capsys.readouterr().err


# Words that send people the right way


@pytest.mark.parametrize(
    "args,pairs",
    [
        (["-p", "n", "3"], [["n", "3"]]),
        (["-p", "n=3"], [["n", "3"]]),
        (["n=3", "-p", "m", "4"], [["n", "3"], ["m", "4"]]),
        (["--out", "n=3"], None),
        (["--out=n=3"], None),
        (["-p", "n=-3"], [["n", "-3"]]),
        (["-p", "n=a=b"], [["n", "a=b"]]),
    ],
)
def test_parameters_in_every_spelling(args, pairs):
    assert commands.arguments(commands.th_paper.__wrapped__, args)["p"] == pairs


@pytest.mark.parametrize(
    "command,args,words",
    [
        ("th_paper", ["--modle", "toy"], "Did you mean --model?"),
        ("th_paper", ["n_prompts", "10"], "n_prompts=50"),
        ("th_paper", ["-p", "n_prompts"], "argument -p"),
        ("th_paper", ["--seed", "x"], "invalid int"),
        ("th_scan", ["--rope-distence", "3"], "Did you mean --rope-distance?"),
        ("th_compare", [], "required: runs"),
        ("th_paper", ["--dtype", "float31"], "invalid choice"),
    ],
)
def test_the_parser_refuses_as_everything_does(command, args, words):
    with pytest.raises(UsageError) as e:
        commands.arguments(getattr(commands, command).__wrapped__, args)
    assert words in str(e.value)


@pytest.mark.parametrize("args", [["--rope-distance", "3"], ["--rope_distance", "3"], ["--rope_distance=3"]])
def test_dashes_or_underscores(args):
    assert commands.arguments(commands.th_scan.__wrapped__, args)["rope_distance"] == 3


@pytest.mark.parametrize(
    "pair,words",
    [
        ("n_promts=3", "Did you mean 'n_prompts'"),
        ("n_prompts=ten", "a whole number"),
        ("n_prompts=2.5", "a whole number"),
        ("n_prompts=10.0", "a whole number"),
        ("n_prompts=true", "a whole number"),
        ("n_prompts=-3", "0 or more"),
        ("list_lengths=3", "a list"),
        ("list_lengths=[2,0]", "a list"),
        ("list_lengths=[]", "a list"),
        ("how=fast", "'full', 'quick'"),
        ("audit_plan=long", "'quick'"),
        ("template=poem", "'things'"),
        ("known=gpt3", "'gpt2'"),
        ("seed=3", "--seed 3"),
        ("model=x", "--model x"),
    ],
)
def test_parameters_are_checked_before_a_kernel_starts(pair, words, tmp_path, no_loading, capsys):
    assert call(commands.th_paper, out=str(tmp_path / "o"), p=[pair.split("=")]) == 1
    err = capsys.readouterr().err
    assert words in err and pair.split("=")[0] in err and not (tmp_path / "o").exists()


def test_settings_that_make_no_sense(tmp_path, no_loading, capsys):
    out, folder = str(tmp_path / "o"), str(tmp_path)
    for job, words in [
        (lambda: commands.th_scan(out=out, memory="4"), "4GB"),
        (lambda: commands.th_scan(out=out, memory="-4GB"), "negative"),
        (lambda: commands.th_scan(out=out, modes="X"), "Q, K and V"),
        (lambda: commands.th_scan(out=out, top=-1), "--top -1"),
        (lambda: commands.th_scan(out=out, reader="nine"), "9.9 or L9H9"),
        (lambda: commands.th_scan(out=out, level="neuron"), "component or head"),
        (lambda: commands.th_paper(out=out, seed=-1), "seed cannot be -1"),
        (lambda: commands.th_edit(out=out, seed=-1), "seed cannot be -1"),
        (lambda: commands.th_compare([folder], out=out), "Run th_paper first"),
        (lambda: commands.th_brief(folder, out=folder), "is a folder"),
        (lambda: commands.th_sweep("tiny", out=out, retries=-1), "--retries -1"),
    ]:
        assert call(job) == 1
        err = capsys.readouterr().err
        assert words in err and "Traceback" not in err
    assert not (tmp_path / "o").exists()


def test_sweep_files_are_checked_too(tmp_path, capsys):
    for text, words in [
        ("seeds = [-1]", "seeds.0"),
        ("[vary]\nn_prompts = [3, 2.5]", "a whole number"),
        ("[parameters]\nhow = 'fast'", "'quick'"),
    ]:
        (tmp_path / "s.toml").write_text(text.replace("[vary]", "[vary]") + '\n[[models]]\nname = "toy"')
        assert call(commands.th_sweep, str(tmp_path / "s.toml"), dry_run=True) == 1 and words in capsys.readouterr().err


# A kernel of our own


def notebook(folder, *cells):
    "A notebook with the parameters of the paper that every run gets"
    code = lambda s, tags=(): dict(
        cell_type="code",
        id=f"c{abs(hash(s)) % 10**8}",
        metadata=dict(tags=list(tags)),
        source=s,
        outputs=[],
        execution_count=None,
    )
    first = "model = ''\nseed = 0\nout = ''\nresume = False\nnotebook_sha256 = ''\ntrap = ''"
    spec = dict(kernelspec=dict(name="python3", language="python", display_name="x"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nb.ipynb").write_text(
        json.dumps(
            dict(cells=[code(first, ["parameters"]), *map(code, cells)], metadata=spec, nbformat=4, nbformat_minor=5)
        )
    )
    return folder / "nb.ipynb"


look = """
import json, sys, os, talking_heads
from pathlib import Path
planted = [n for n in ("from_startup", "from_profile") if n in globals()]
seen = dict(python=sys.executable, package=talking_heads.__file__, planted=planted,
            poisoned="poison" in sys.modules, cwd_on_path="" in sys.path, out=out)
(Path(out)/"seen.json").write_text(json.dumps(seen))
"""


@pytest.mark.parametrize("names", [("run {a}", "nb {b}"), ("{model} {} #1?%", "x"), ("läufe é", "-dash")])
def test_a_hostile_machine_changes_nothing(tmp_path, monkeypatch, names):
    "Another environment's `python3`, start-up files, a profile, a path with traps; folders named like templates"
    kernels, home, traps = tmp_path / "jupyter" / "kernels" / "python3", tmp_path / "home", tmp_path / "traps"
    startup = home / ".ipython" / "profile_default" / "startup"
    for d in (kernels, startup, traps):
        d.mkdir(parents=True)
    (kernels / "kernel.json").write_text(
        json.dumps(dict(argv=["/bin/false", "{connection_file}"], display_name="wrong", language="python"))
    )
    (startup / "00.py").write_text("from_profile = 1")
    (startup.parent / "ipython_kernel_config.py").write_text("c.IPKernelApp.exec_lines = ['from_profile = 1']")
    (tmp_path / "startup.py").write_text("from_startup = 1")
    (traps / "sitecustomize.py").write_text("import sys; sys.modules['poison'] = sys")
    monkeypatch.setenv("HOME", str(home))
    for k, v in dict(
        JUPYTER_PATH=tmp_path / "jupyter", PYTHONSTARTUP=tmp_path / "startup.py", PYTHONPATH=traps, PATH="/nowhere"
    ).items():
        monkeypatch.setenv(k, str(v))
    out = tmp_path / names[0]
    out.mkdir()
    commands._execute(notebook(tmp_path / names[1], look), out, dict(model="m", out=str(out)))
    seen = json.loads((out / "seen.json").read_text())
    want = Path(commands.__file__).parent / "__init__.py"
    assert seen == dict(
        python=sys.executable, package=str(want), planted=[], poisoned=False, cwd_on_path=False, out=str(out)
    )
    assert sorted(p.name for p in out.iterdir()) == ["paper.ipynb", "seen.json"] and not list(
        (tmp_path / "home").glob(".local")
    )


# Interrupts at any moment

steps = """
import os, signal, time
from pathlib import Path
import pandas as pd
Path(out, "pid").write_text(str(os.getpid()))
if trap == "before": time.sleep(60)
if trap == "die before": os.kill(os.getpid(), signal.SIGKILL)
from talking_heads.base.store import RunFolder
run = RunFolder(out, dict(seed=seed), resume)
def step(n):
    with open(Path(out).parent/"log", "a") as f: f.write(f"{n}\\n")
    return pd.DataFrame({"x": [n]})
run.step("one", lambda: step(1))
if trap == "after": time.sleep(60)
if trap == "die after": os.kill(os.getpid(), signal.SIGKILL)
if trap == "refuse": raise __import__("talking_heads.base.core").base.core.TaskError("No such task.")
run.step("two", lambda: step(2))
"""
drive = """
import sys
from pathlib import Path
from talking_heads import commands
from talking_heads.base.core import *
@commands.friendly
def go(nb, out, trap):
    with folder_lock(out, "th_paper"):
        commands._run_paper(Path(nb), Path(out), dict(model="m", seed=0, out=out, trap=trap))
go(*sys.argv[1:])
"""


def again(nb, out, resume):
    "The same run, to its end"
    with folder_lock(out, "th_paper"):
        commands._run_paper(nb, out, dict(model="m", seed=0, out=str(out), resume=resume))
    assert (
        (out / "tables" / "two.parquet").is_file()
        and (out / "paper.ipynb").is_file()
        and not (out / ".talking_heads.lock").exists()
    )


@pytest.mark.parametrize(
    "moment,sig,resume",
    [("before", signal.SIGTERM, False), ("before", signal.SIGKILL, True), ("after", signal.SIGINT, True)],
)
def test_interrupted_at_any_moment(tmp_path, moment, sig, resume):
    nb, out = notebook(tmp_path / "nb", steps), tmp_path / "out"
    p = python(drive, nb, out, moment)
    until(
        lambda: (
            (out / "pid").exists()
            and (out / "pid").read_text()
            and (moment == "before" or (out / "tables" / "seconds.json").exists())
        )
    )
    pid = int((out / "pid").read_text())
    with pytest.raises(InUseError):
        take_folder(out, "a second")
    p.send_signal(sig)
    _, err = p.communicate(timeout=60)
    assert p.returncode == (-sig if sig == signal.SIGKILL else 130) and "Traceback" not in err
    until(lambda: not alive(pid), 10)
    check_run_folder(out)  # still ours
    again(nb, out, resume)
    assert (tmp_path / "log").read_text().split() == ["1", "2"]  # nothing was done twice


@pytest.mark.parametrize("moment", ["die before", "die after"])
def test_a_kernel_that_dies(tmp_path, moment):
    nb, out = notebook(tmp_path / "nb", steps), tmp_path / "out"
    with folder_lock(out, "th_paper"), pytest.raises(OutputError, match="ended from outside.*memory.*--resume"):
        commands._run_paper(nb, out, dict(model="m", seed=0, out=str(out), trap=moment))
    from talking_heads.paper import sweeps

    assert sweeps._died in str(commands._death(out)) and (out / "paper.ipynb").is_file()
    again(nb, out, moment == "die after")
    assert (tmp_path / "log").read_text().split() == ["1", "2"]


def test_a_refusal_in_the_middle_keeps_the_notebook(tmp_path):
    nb, out = notebook(tmp_path / "nb", steps), tmp_path / "out"
    with folder_lock(out, "th_paper"), pytest.raises(OutputError, match="No such task.*finished steps are kept"):
        commands._run_paper(nb, out, dict(model="m", seed=0, out=str(out), trap="refuse"))
    assert (out / "paper.ipynb").is_file() and commands._our_errors() >= {
        "ChartError",
        "SweepError",
        "DocsError",
        "ComparisonError",
        "InUseError",
    }


def test_a_refused_run_leaves_nothing(tmp_path, capsys):
    assert call(commands.th_paper, model="smolm2", out=str(tmp_path / "a" / "b")) == 1 and not any(tmp_path.iterdir())
    with pytest.raises(OutputError):
        commands._run_paper(
            notebook(tmp_path / "nb", "from talking_heads.base.core import *\nraise ModelError('none')"),
            tmp_path,
            dict(model="m"),
        )
    assert [p.name for p in tmp_path.iterdir()] == ["nb"]


def test_marks_come_first(tmp_path, monkeypatch):
    "Whatever is killed after the first file that it writes leaves a folder that the next one may use"

    class Killed(BaseException):
        pass

    def clear(self):
        raise Killed

    monkeypatch.setattr(RunFolder, "_clear", clear)
    with pytest.raises(Killed):
        RunFolder(tmp_path, {})
    monkeypatch.undo()
    for f in ("results.json", "paper.ipynb"):
        (tmp_path / f).write_text("left by the run that was killed")
    RunFolder(tmp_path, {}, resume=True)
    assert not (tmp_path / "results.json").exists()


def test_pages_that_fail_lose_no_results(tmp_path, capsys, monkeypatch):
    from talking_heads.paper import report

    (tmp_path / "results.json").write_text(json.dumps(made_results.complete()))

    def fails(*a, **k):
        raise OutputError("no space")

    monkeypatch.setattr(report, "to_html", fails)
    assert call(commands.friendly(commands._pages), tmp_path) == 1
    said = capsys.readouterr()
    assert "results are in" in said.err and "--resume makes the pages again" in said.err and "IOI, n=" in said.out


# Importing

snapshot = """
import json, logging, os, signal, sys, warnings, importlib, pkgutil
sys.argv = ["th_paper", "--rope-distance", "--x-y"]
import altair as alt, numpy, pandas as pd, torch, transformers
from transformer_lens.model_bridge import TransformerBridge
import nbconvert, papermill, jsonschema
def look():
    switches = [torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.is_grad_enabled()]
    charts = [alt.renderers.active, alt.theme.active, alt.data_transformers.active]
    return dict(argv=sys.argv[:], env=dict(os.environ), filters=[str(f) for f in warnings.filters], cwd=os.getcwd(),
        path=sys.path[:], hook=str(sys.excepthook), level=logging.getLogger().level,
        tf=transformers.logging.get_verbosity(),
        signals={int(s): str(signal.getsignal(s)) for s in signal.valid_signals()}, torch=switches,
        random=[str(torch.get_default_dtype()), torch.initial_seed()], numpy=str(numpy.get_printoptions()),
        pandas=[str(pd.get_option(o)) for o in ("display.max_rows", "display.precision", "display.width")],
        altair=[*charts, sorted(alt.theme.names()), sorted(alt.renderers.names())])
import talking_heads
changed = []
for m in pkgutil.iter_modules(talking_heads.__path__):
    before = look()
    importlib.import_module("talking_heads."+m.name)
    after = look()
    changed += [f"{m.name}: {k}: {after[k]}" for k in before if before[k] != after[k]]
print(json.dumps(changed))
"""


@pytest.mark.slow
def test_importing_changes_nothing():
    out, err = python(snapshot).communicate(timeout=120)
    changed = [c for c in json.loads(out.splitlines()[-1]) if "IProgress" not in c]  # a filter of a warning of tqdm
    assert changed == [], changed


# An installed package is no clone


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    "The wheel of this checkout in an environment of its own, which borrows the other packages of this one"
    pytest.importorskip("setuptools")
    d = tmp_path_factory.mktemp("wheel")
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True
    ).stdout.splitlines()
    if not files:
        pytest.skip("not a git checkout")
    for f in files:
        if f.startswith(("talking_heads/", "nbs/paper/")) or f in (
            "setup.py",
            "settings.ini",
            "README.md",
            "LICENSE",
            "MANIFEST.in",
        ):
            (d / "src" / f).parent.mkdir(parents=True, exist_ok=True)
            (d / "src" / f).write_bytes((root / f).read_bytes())
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", d, d / "src"],
        check=True,
        capture_output=True,
        timeout=300,
    )
    venv.create(d / "env", with_pip=False)
    site = next((d / "env").glob("lib/python*/site-packages"))
    wheel = zipfile.ZipFile(next(d.glob("*.whl")))
    wheel.extractall(site)  # not by pip, which would take the package of this environment away
    scripts = ConfigParser()
    scripts.read_string(next(wheel.read(n).decode() for n in wheel.namelist() if n.endswith("entry_points.txt")))
    for name, where in scripts["console_scripts"].items():
        (d / "env" / "bin" / name).write_text(
            "import sys\nfrom {} import {}\nsys.exit({}())\n".format(*where.split(":"), name)
        )
    (site / "borrowed.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    return d


def test_the_wheel_holds_what_the_commands_need(installed):
    names = zipfile.ZipFile(next(installed.glob("*.whl"))).namelist()
    for f in (
        "notebooks/paper.ipynb",
        "notebooks/paper_weights.ipynb",
        "sweep_files/tiny.toml",
        "texts/prose.txt",
        "models/toy/model.safetensors",
    ):
        assert f"talking_heads/{f}" in names
    nb = json.loads(zipfile.ZipFile(next(installed.glob("*.whl"))).read("talking_heads/notebooks/paper.ipynb"))
    mine = json.loads((root / "nbs" / "paper" / "paper.ipynb").read_text())
    assert [c["source"] for c in nb["cells"]] == [c["source"] for c in mine["cells"]] and not any(
        c.get("outputs") for c in nb["cells"]
    )


@pytest.mark.slow
def test_commands_of_an_installed_package(installed, tmp_path):
    "Outside any checkout: the paper on a toy, then everything that reads it"
    few = "n_prompts=20 n_ablate=8 n_list=8 n_list_other=4 list_lengths=[2,3] list_lengths_other=[3]".split()
    few += "steer_lengths=[3] n_steer=8 steer_steps=2 how=quick".split()
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | dict(HF_HUB_OFFLINE="1")

    def th(*args):
        script = next((installed / "env" / "bin").glob(args[0]))
        r = subprocess.run(
            [str(installed / "env" / "bin" / "python"), script, *map(str, args[1:])],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert r.returncode == 0 and "Traceback" not in r.stderr, r.stderr
        return r.stdout

    th("th_paper", "--model", "toy", "--out", "my run", *few)
    cells = json.loads((tmp_path / "my run" / "paper.ipynb").read_text())["cells"]
    assert read_results(tmp_path / "my run")["model"] == "toy" and len(cells) > 20
    assert "loudest" in th("th_scan", "toy", "--out", "scan").lower() and "finished" in th(
        "th_sweep", "tiny", "--dry-run"
    )
    th("th_brief", "my run", "--out", "brief.html")
    where = subprocess.run(
        [str(installed / "env" / "bin" / "python"), "-c", "import talking_heads; print(talking_heads.__file__)"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert str(installed / "env") in where.stdout


# Tools that have several steps


def test_a_notebook_that_fails_keeps_what_was_stored(tmp_path, capsys):
    sys.path.insert(0, str(root / "tools"))
    import run_notebooks

    nb = notebook(tmp_path, "1+1", "1/0")
    before = nb.read_bytes()
    assert not run_notebooks.run(nb) and nb.read_bytes() == before
    failed = tmp_path / ".nb.failed.ipynb"
    assert (
        "ZeroDivisionError" in failed.read_text()
        and '"2"' in failed.read_text()
        and str(failed) in capsys.readouterr().err
    )
    nb = notebook(tmp_path, "1+1")
    assert run_notebooks.run(nb) and not failed.exists() and '"2"' in nb.read_text()
