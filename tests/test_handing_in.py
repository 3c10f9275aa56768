"Runs that are handed in: a whole one is stored, and one that was broken in any way is refused with the reason"

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from talking_heads.base.core import OutputError, write_json
from talking_heads.base.store import code_behind
from talking_heads.paper.claims import judge_claims
from talking_heads.paper.handing_in import *
from talking_heads.paper.sections import read_results

root = Path(__file__).resolve().parent.parent
notebooks = root / "nbs" / "paper"


def finished(folder, results, notebook="paper"):
    "A run folder as `th_paper` leaves one, around results that are given"
    nb = nbformat.v4.new_notebook()
    cells = [
        nbformat.v4.new_markdown_cell("# The paper, rerun\n\n> What it is"),
        nbformat.v4.new_code_cell('model = "toy"\nseed = 0\nhow = "full"\nout = "x"'),
        nbformat.v4.new_code_cell("1 + 1"),
    ]
    cells[1].metadata["tags"] = ["injected-parameters"]
    nb.cells = cells
    folder.mkdir()
    nbformat.write(nb, folder / "paper.ipynb")
    write_json(results, folder / "results.json")
    write_json({"seconds": 1}, folder / "tables" / "seconds.json")
    seal_run(folder, notebook, code_behind(notebooks / f"{notebook}.ipynb"))
    return folder


@pytest.fixture
def toy_results():
    "Results of the stored toy run"
    return json.loads((notebooks / "runs" / "toy.json").read_text(encoding="utf-8"))["results"]


@pytest.fixture
def handed(tmp_path, toy_results):
    return finished(tmp_path / "run", toy_results)


def sealed_again(folder):
    seal = read_seal(folder)
    seal_run(folder, seal["notebook"], seal["code"])


def test_a_whole_run_is_taken(handed):
    h = check_handed_in(handed, notebooks)
    assert h.notebook == "paper" and h.code == code_behind(notebooks / "paper.ipynb")
    assert h.results == read_results(handed)
    missing = missing_sections(h.results)
    assert set(missing).isdisjoint(h.results) and "ioi" not in missing


def test_an_edited_number_breaks_the_seal(handed):
    path = handed / "results.json"
    results = json.loads(path.read_text())
    results["ioi"]["accuracy"] -= 0.01
    path.write_text(json.dumps(results))
    with pytest.raises(OutputError, match="results.json was changed"):
        check_handed_in(handed, notebooks)


@pytest.mark.parametrize("file", ["tables/seconds.json", "paper.ipynb"])
def test_a_lost_or_changed_file_breaks_the_seal(handed, file):
    (handed / file).unlink()
    with pytest.raises(OutputError, match=f"{file} is missing"):
        check_handed_in(handed, notebooks)
    (handed / file).write_text("{}")
    with pytest.raises(OutputError, match=f"{file} was changed"):
        check_handed_in(handed, notebooks)


def test_a_run_without_a_seal_is_not_finished(handed):
    (handed / seal_name).unlink()
    with pytest.raises(OutputError, match="not finished"):
        check_handed_in(handed, notebooks)
    (handed / seal_name).write_text("[]")
    with pytest.raises(OutputError, match="is no seal"):
        check_handed_in(handed, notebooks)


def test_other_code_is_refused(handed):
    seal_run(handed, "paper", "0" * 64)
    with pytest.raises(OutputError, match="other code"):
        check_handed_in(handed, notebooks)


def test_a_verdict_that_does_not_follow_is_refused(handed, toy_results):
    said = toy_results["verdicts"][0]
    said["verdict"] = "partly" if said["verdict"] != "partly" else "replicates"
    write_json(toy_results, handed / "results.json")
    sealed_again(handed)
    with pytest.raises(OutputError, match=f"verdicts on {said['claim']} do not follow"):
        check_handed_in(handed, notebooks)


def test_an_older_schema_is_refused(handed, toy_results):
    old = {k: v for k, v in toy_results.items() if k in ("model", "provenance", "ioi", "heads", "laundry_list")}
    write_json(old | dict(schema_version=1), handed / "results.json")
    sealed_again(handed)
    with pytest.raises(OutputError, match="version 1"):
        check_handed_in(handed, notebooks)


def test_foreign_weights_are_refused(handed, toy_results):
    write_json(toy_results | dict(model="gpt2"), handed / "results.json")
    sealed_again(handed)
    with pytest.raises(OutputError, match="not those of openai-community/gpt2"):
        check_handed_in(handed, notebooks)


def test_what_is_missing_is_said(handed, toy_results):
    del toy_results["forecast"]
    toy_results["untested"] = dict(forecast="All prompts failed.")
    toy_results["provenance"] |= dict(source="local", sha256="0" * 64)
    toy_results["provenance"]["settings"]["how"] = "quick"
    said = {v["claim"]: v for v in toy_results["verdicts"]}
    for v in judge_claims(toy_results):
        said[v.claim] |= dict(verdict=v.verdict, reason=v.reason)
    write_json(toy_results, handed / "results.json")
    sealed_again(handed)
    weights, quick, *gone = check_handed_in(handed, notebooks).notes
    assert "Nobody published" in weights and "Quick" in quick
    assert "Without numbers in this run: forecast. All prompts failed." in gone


def test_make_store_writes_both_files_or_none(handed, tmp_path):
    "The tool itself, in a copy of what it needs"
    copy = tmp_path / "checkout"
    (copy / "nbs" / "paper" / "runs").mkdir(parents=True)
    (copy / "tools").mkdir()
    shutil.copy(root / "tools" / "store_run.py", copy / "tools")
    shutil.copy(notebooks / "paper.ipynb", copy / "nbs" / "paper")

    def call():
        command = [sys.executable, str(copy / "tools" / "store_run.py"), str(handed), "mine", "The paper on mine"]
        return subprocess.run(command, capture_output=True, text=True, cwd=root)

    done = call()
    assert done.returncode == 0, done.stderr
    stored = json.loads((copy / "nbs/paper/runs/mine.json").read_text())
    assert stored["code"] == read_seal(handed)["code"] and stored["parameters"] == {
        "model": '"toy"',
        "seed": "0",
        "how": '"full"',
    }
    page = nbformat.read(copy / "nbs/paper/runs/mine.ipynb", 4)
    assert page.cells[0].source.startswith("# The paper on mine") and len(page.cells) == 2
    before = (copy / "nbs/paper/runs/mine.json").read_bytes()
    (handed / "results.json").write_text("{}")
    refused = call()
    assert refused.returncode == 1 and "Traceback" not in refused.stderr and "results.json" in refused.stderr
    assert (copy / "nbs/paper/runs/mine.json").read_bytes() == before


def test_the_monthly_workflow_runs_the_published_weights():
    text = (root / ".github" / "workflows" / "paper.yml").read_text(encoding="utf-8")
    for p in published:
        assert f"revision: {p.revision}" in text and any(f"model: {n}\n" in text for n in p.names)
    assert "make store" in text and "th_compare" in text
