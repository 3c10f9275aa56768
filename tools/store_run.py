"""Put a finished run on the site

`python tools/store_run.py runs/paper smollm2 'The paper on SmolLM2'` writes nbs/paper/runs/smollm2.ipynb and .json"""

import json
import re
import sys
from pathlib import Path

import nbformat
from execnb.nbio import read_nb, write_nb
from nbdev.clean import clean_nb

from talking_heads.base.core import atomic_path
from talking_heads.base.store import code_behind
from talking_heads.paper.sections import read_results

root = Path(__file__).resolve().parent.parent


def source_of(run: Path) -> Path:
    "The notebook that a run executed"
    weights_only = "ioi" not in read_results(run)
    return root / "nbs" / "paper" / ("paper_weights.ipynb" if weights_only else "paper.ipynb")


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


def store(run: Path, name: str, title: str) -> None:
    "Copy results and notebook, with what they were made by"
    results, source = read_results(run), source_of(run)
    nb = nbformat.read(run / "paper.ipynb", 4)
    model = Path(results["model"]).name
    given = {k: scrubbed(v, run, model) for k, v in settings_of(nb).items()}
    nb.cells = [c for c in nb.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    first = nb.cells[0].source.split("\n")
    first[0] = f"# {title}"
    made_with = ", ".join(f"`{k} = {v}`" for k, v in given.items())
    note = f"::: {{.callout-note}}\nA stored run, made with {made_with}.\n:::"
    nb.cells[0].source = "\n".join(first) + "\n\n" + note
    out = root / "nbs" / "paper" / "runs" / f"{name}.ipynb"
    results |= dict(model=scrubbed(str(results["model"]), run, model))
    stored = dict(notebook=source.name, code=code_behind(source), parameters=given, results=results)
    text = scrubbed(json.dumps(stored, indent=1, sort_keys=True, ensure_ascii=False), run, model) + "\n"
    # both are made before either takes its place: the site reads them together
    with atomic_path(out.with_suffix(".json")) as numbers, atomic_path(out) as pages:
        numbers.write_text(text, encoding="utf-8")
        pages.write_text(scrubbed(nbformat.writes(nb), run, model), encoding="utf-8")
        clean = read_nb(pages)
        clean_nb(clean, allowed_cell_metadata_keys=["tags"])
        write_nb(clean, pages)
    print(f"{out.relative_to(root)} and its .json")


if __name__ == "__main__":
    store(Path(sys.argv[1]).resolve(), *sys.argv[2:4])
