"""Put a finished run on the site

`python tools/store_run.py runs/paper` checks the run and writes nbs/paper/runs/NAME.ipynb and .json"""

import argparse
import json
import re
import sys
from pathlib import Path

import nbformat
from execnb.nbio import read_nb, write_nb
from nbdev.clean import clean_nb

from talking_heads.base.core import TalkingHeadsError, atomic_path
from talking_heads.paper.handing_in import check_handed_in

root = Path(__file__).resolve().parent.parent
notebooks = root / "nbs" / "paper"


def scrubbed(text: str, run: Path, model: str) -> str:
    "Text without the paths of this machine"
    for path in (run, run.parent, root, Path.home()):
        full = str(path.resolve())
        text = text.replace(full + "/", "").replace(full, path.name)
    return re.sub(r"(?<![\w./])/(?:[\w.-]+/)+(" + re.escape(model) + ")", r"\1", text)


OF_ONE_MACHINE = ("out", "resume", "notebook_sha256", "device", "why")  # parameters that say nothing to a reader


def settings_of(nb) -> dict:
    "Parameters that papermill put in"
    cell = next(c for c in nb.cells if "injected-parameters" in c.metadata.get("tags", []))
    given = re.findall(r"^(\w+) = (.*)$", cell.source, re.M)
    return {k: v for k, v in given if k not in OF_ONE_MACHINE}


def plain_name(model: str) -> str:
    "A model's name as a file's"
    return re.sub(r"[^a-z0-9]+", "_", model.split("/")[-1].lower()).strip("_")


def store(run: Path, name: str | None = None, title: str | None = None) -> None:
    "Copy results and notebook, with what they were made by; raises `OutputError` for a run that must not be stored"
    handed = check_handed_in(run, notebooks)
    results = handed.results
    nb = nbformat.read(run / "paper.ipynb", 4)
    model = Path(results["model"]).name
    name, title = name or plain_name(model), title or f"The paper on {model}"
    given = {k: scrubbed(v, run, model) for k, v in settings_of(nb).items()}
    nb.cells = [c for c in nb.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    first = nb.cells[0].source.split("\n")
    first[0] = f"# {title}"
    made_with = ", ".join(f"`{k} = {v}`" for k, v in given.items())
    lines = [f"A stored run, made with {made_with}.", *handed.notes]
    note = "::: {.callout-note}\n" + "\n\n".join(lines) + "\n:::"
    nb.cells[0].source = "\n".join(first) + "\n\n" + note
    out = notebooks / "runs" / f"{name}.ipynb"
    results |= dict(model=scrubbed(str(results["model"]), run, model))
    stored = dict(notebook=f"{handed.notebook}.ipynb", code=handed.code, parameters=given, results=results)
    text = scrubbed(json.dumps(stored, indent=1, sort_keys=True, ensure_ascii=False), run, model) + "\n"
    # both are made before either takes its place: the site reads them together
    with atomic_path(out.with_suffix(".json")) as numbers, atomic_path(out) as pages:
        numbers.write_text(text, encoding="utf-8")
        pages.write_text(scrubbed(nbformat.writes(nb), run, model), encoding="utf-8")
        clean = read_nb(pages)
        clean_nb(clean, allowed_cell_metadata_keys=["tags"])
        write_nb(clean, pages)
    print(f"{out.relative_to(root)} and its .json", *handed.notes, sep="\n")
    pages = "nbs/paper/results.ipynb nbs/findings/*.ipynb index.ipynb"
    print(f"Pages that compare the stored runs: make notebooks NB='{pages}'")


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("run", type=Path, help="folder of th_paper")
    p.add_argument("name", nargs="?", help="of the files; the model's name if not given")
    p.add_argument("title", nargs="?", help="of the page")
    a = p.parse_args()
    try:
        store(a.run.expanduser().resolve(), a.name, a.title)
    except TalkingHeadsError as e:
        sys.exit(str(e))
