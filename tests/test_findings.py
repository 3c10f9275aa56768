"Findings told from stored results: words follow numbers, what is missing is named, pages are short and show no code"

import json
import re
from pathlib import Path

import pytest

from talking_heads.base.core import OutputError
from talking_heads.paper.comparison import read_run
from talking_heads.site.findings import *
from talking_heads.site.notebook_pages import directives

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "nbs" / "findings").glob("*.ipynb"))


def test_lines_hold_the_numbers_of_the_run():
    r, text = stored_results(), result_lines("").data
    assert len(text.splitlines()) == 5 and all(f"findings/{p.name}" in text for p in PAGES)
    assert pct(r["removal"]["relative"]) in text and r["removal"]["component"] in text
    assert all(pct(x["named"]) in text and pct(x["random"]) in text for x in r["steering"].values())
    assert str(len(r["audit"]["failed"])) in text


def test_home_shows_what_is_stored():
    "The home page's lines and the README's are those of the stored run; execute index.ipynb where they are not"
    want = result_lines().data
    cells = json.loads((ROOT / "index.ipynb").read_text())["cells"]
    outputs = ["".join(o.get("data", {}).get("text/markdown", "")) for c in cells for o in c.get("outputs", [])]
    assert want in outputs and want in (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_is_missing_is_named():
    "A run without a section gives a sentence that says which, and why"
    run = dict(signal=dict(n=1), untested=dict(removal="No head."))
    told = say(lambda r: "no", "removal", "signal", results=run).data
    assert told == "*Not in the stored run: removal: No head.*"
    assert "left out" in say(lambda r: "no", "ioi", results={}).data
    with pytest.raises(OutputError, match="no stored run"):
        stored_results("nobody/nothing")


def test_matrix_shows_every_verdict_with_its_reason():
    runs = stored_runs()
    html = claim_matrix(runs).data
    for r in runs:
        for v in r.results["verdicts"]:
            assert v["verdict"] in html
    assert html.count("<details") == sum(len(r.results["verdicts"]) for r in runs) + html.count("the rule")
    made = read_run(ROOT / "nbs" / "paper" / "runs" / "toy.json")
    assert "&lt;" in claim_matrix([type(made)("<b>", made.results, 2, {}, "")]).data


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_pages_are_short_and_show_no_code(path):
    "At most five pages, 1,200 words each, one or two charts or tables, every code cell hidden or without echo"
    assert len(PAGES) <= 5
    cells, words = json.loads(path.read_text())["cells"], []
    for c in cells:
        text = "".join(c["source"])
        if c["cell_type"] == "markdown":
            words += re.findall(r"[\w'-]+", re.sub(r"\]\([^)]*\)", "", text))
            continue
        notes, _ = directives(text)
        assert "hide" in notes or notes.get("echo") == "false", c["id"]
        told = "".join(o for x in c["outputs"] for o in x.get("data", {}).get("text/markdown", ""))
        words += re.findall(r"[\w'-]+", told)
    assert 150 < len(words) <= 1200
    charts = sum("vegalite" in k for c in cells for o in c.get("outputs", []) for k in o.get("data", {}))
    assert charts <= 2


def test_numbers_of_prose_are_not_typed():
    "Text cells of the pages hold no measured number: digits there name heads, models, years, sizes or limits"
    allowed = r"2024|1|2|3|4|5|8|9\.9|64|\.05|-3|270M|GPT-2|4-bit|28|th_edit|rank-1"
    for path in PAGES:
        for c in json.loads(path.read_text())["cells"]:
            if c["cell_type"] != "markdown":
                continue
            text = re.sub(r"\]\([^)]*\)|^\d\.", "", "".join(c["source"]), flags=re.M)
            left = re.sub(rf"(?<![\w.])(?:{allowed})(?![\w%])", "", text)
            assert not re.search(r"\d+%|\d\.\d", left), (path.name, re.findall(r".{20}\d+%|.{20}\d\.\d", left))
