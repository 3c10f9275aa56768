"The fast check: the package is what the notebooks export, the notebooks are clean, README.md is what index.ipynb gives"

import ast, json, os, re, shutil, sys, tempfile, time
from contextlib import contextmanager
from pathlib import Path

from execnb.nbio import nb2str, read_nb
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.doclinks import nbdev_export
from nbdev.process import extract_directives

sys.path.insert(0, str(Path(__file__).resolve().parent))
import house
from make_readme import readme

HOUSE = True  # holds notebooks and package to the rules of house.py, in place of MAX_LINES
MAX_LINES = 30
# A slash after a letter, a dot or a colon is the middle of an address or of a relative path, not a machine's root.
PATH_RE = re.compile(r"(?:(?<![\w.:/~<-])|(?<=file://))/(?:work|tmp|root|(?:home|Users)/[\w.-]+)(?![\w.-])")
PROGRESS_RE = re.compile(r"\d+%\||\d(?:it/s|s/it)\b|<progress\b|\r(?!\n)")


@contextmanager
def project(root):
    "Stand in `root` and let nbdev read its settings.ini"
    old = Path.cwd()
    try:
        os.chdir(root)
        get_config.cache_clear()
        yield get_config()
    finally:
        os.chdir(old)
        get_config.cache_clear()


def own_notebooks(nbs):
    "The notebooks below `nbs`, stored runs left out; a link to a notebook that isn't written yet is passed over"
    found = sorted(
        nbs.rglob("[!.]*.ipynb")
    )  # a dot in front: what tools/run_notebooks.py leaves of a notebook that failed
    inside = lambda p: set(p.relative_to(nbs).parts) & {"runs", ".ipynb_checkpoints"}
    return [p for p in found if p.exists() and not inside(p)]


def modules(root, lib):
    "Relative path to bytes of every Python file of the package `lib` in `root`"
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted((root / lib).rglob("*.py"))}


def export_all(root, lib, nbs, dest):
    "Export the notebooks of `root` into the empty folder `dest`"
    (dest / nbs).mkdir(parents=True)
    (dest / lib).mkdir(parents=True)
    shutil.copy(root / "settings.ini", dest)
    for p in own_notebooks(root / nbs):
        (dest / nbs / p.relative_to(root / nbs)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(p, dest / nbs / p.relative_to(root / nbs))
    if (root / lib / "__init__.py").exists():
        shutil.copy(root / lib / "__init__.py", dest / lib)  # nbdev only sets the version in it
    with project(dest):
        nbdev_export()


def check_export(root):
    "Problems with the package: files that differ from what the notebooks export"
    with project(root) as cfg:
        lib, nbs = (Path(cfg[o]).resolve().relative_to(root) for o in ("lib_path", "nbs_path"))
    with tempfile.TemporaryDirectory() as tmp:
        try:
            export_all(root, lib, nbs, Path(tmp))
        except Exception as e:  # whatever stops nbdev here stops `make export` too
            yield f"{nbs}: nbdev cannot export these notebooks: {type(e).__name__}: {e}"
            return
        want, have = modules(Path(tmp), lib), modules(root, lib)
    for f in sorted(want.keys() | have.keys()):
        if f not in want:
            yield f"{f}: no notebook exports it; delete it, or write it as a notebook"
        elif want[f] != have.get(f):
            yield f"{f}: not what the notebooks export; run `make export`"


def texts(o):
    "All text that an output shows, images left out"
    yield "".join(o.get("text", "")) + "\n".join(o.get("traceback", []))
    for k, v in o.get("data", {}).items():
        if not k.startswith("image/") or "svg" in k:
            yield "".join(v) if isinstance(v, (str, list)) else json.dumps(v)


def noise(cell):
    "What an outsider should not find in a cell's source or outputs"
    for s in [cell.source, *(t for o in cell.get("outputs", []) for t in texts(o))]:
        if m := PATH_RE.search(s):
            yield f"names a path of one machine, {m[0]}"
    for o in cell.get("outputs", []):
        if o.output_type == "error":
            yield f"stored an error, {o.ename}"
        if o.get("name") == "stderr":
            yield "wrote to stderr"
        if any("widget" in k for k in o.get("data", {})) or any(map(PROGRESS_RE.search, texts(o))):
            yield "left a progress bar or widget"


def docs(cell):
    "Exported functions and classes without a docstring of one line"
    if cell.cell_type != "code" or not extract_directives(cell, remove=False).keys() & {"export", "exports"}:
        return
    for o in cell.parsed_() or []:
        if not isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or o.name.startswith("_"):
            continue
        doc = ast.get_docstring(o)
        if not doc or "\n" in doc:
            yield f"`{o.name}` needs a docstring of one line"


def style(cell):
    "What the house rules say against a cell"
    n = len(cell.source.splitlines())
    if not HOUSE and n > MAX_LINES:
        yield f"{n} lines; more than {MAX_LINES} are too many for one cell"
    yield from docs(cell)


def check_notebook(path, name, cfg, rules=(noise, style)):
    "Problems with one notebook, cell by cell, and then with the file as a whole"
    try:
        nb = read_nb(path)
    except (ValueError, KeyError, AttributeError) as e:
        yield f"{name}: not a notebook: {e}"
        return
    for i, c in enumerate(nb.cells):
        yield from (f"{name}: cell {i} ({c.id}): {o}" for rule in rules for o in dict.fromkeys(rule(c)))
    if style not in rules:
        return
    if "widgets" in nb.metadata:
        yield f"{name}: its metadata keeps widgets; remove them"
    clean_nb(
        nb, cfg.clear_all, cfg.allowed_metadata_keys.split(), cfg.allowed_cell_metadata_keys.split(), cfg.clean_ids
    )
    if nb2str(nb) != path.read_text(encoding="utf-8"):
        yield f"{name}: not clean; run `.venv/bin/nbdev_clean --fname {name}`"


def check_notebooks(root):
    "Problems with the notebooks; executed reruns in `runs` are reports, so only noise counts there"
    with project(root) as cfg:
        nbs = Path(cfg.nbs_path).resolve().relative_to(root)
    own = [p for p in own_notebooks(root / nbs) if not p.is_symlink()] + [root / "index.ipynb"]
    for p in filter(Path.exists, own):
        yield from check_notebook(p, p.relative_to(root), cfg)
    for p in sorted((root / nbs).rglob("runs/*.ipynb")):
        yield from check_notebook(p, p.relative_to(root), cfg, (noise,))


def check_house(root):
    "Problems with notebooks and package by the rules of house.py, if they are in force"
    if not HOUSE:
        return
    with project(root) as cfg:
        lib, nbs = (Path(cfg[o]).resolve() for o in ("lib_path", "nbs_path"))
    for p in [*(q for q in own_notebooks(nbs) if not q.is_symlink()), *filter(Path.exists, [root / "index.ipynb"])]:
        try:
            cells = read_nb(p).cells
        except (ValueError, KeyError, AttributeError):
            continue  # not a notebook, which check_notebooks tells
        name = p.relative_to(root).as_posix()
        yield from (f"{name}: {o}" for o in house.notebook_problems(cells))
    if lib.name == house.PACKAGE:
        yield from house.package_problems(lib)


def check_width(root):
    "Lines of tests and tools that are too wide; `ruff format` wraps most of them"
    for p in sorted(f for folder in ("tests", "tools") for f in (root / folder).glob("*.py")):
        for i, o in enumerate(p.read_text(encoding="utf-8").splitlines(), 1):
            if len(o) > house.WIDTH:
                yield f"{p.relative_to(root)}:{i}: a line of {len(o)} characters; {house.WIDTH} at most"


def check_readme(root):
    "README.md and the site's link to its notebook, where there is a notebook to make it from"
    src, dest = root / "index.ipynb", root / "README.md"
    if not src.exists():
        return print("README.md: no index.ipynb yet, not checked")
    with project(root) as cfg:
        link = Path(cfg.nbs_path) / "index.ipynb"
    if not (link.is_symlink() and link.resolve() == src):
        name = link.relative_to(root)
        yield f"{name}: not a link to index.ipynb; run `ln -sf ../index.ipynb {name}`"
    try:
        want = readme(json.loads(src.read_text(encoding="utf-8")))
    except (ValueError, KeyError):
        return  # not a notebook, which is told above
    if not dest.exists() or dest.read_text(encoding="utf-8") != want:
        yield "README.md: not what index.ipynb gives; run `make export`"


def main(root):
    "Print every problem; exit code 1 if there is one"
    root, start = Path(root).resolve(), time.time()
    probs = [o for f in (check_export, check_notebooks, check_house, check_width, check_readme) for o in f(root)]
    for o in probs:
        print(o)
    print(f"check: {len(probs) or 'no'} problem{'s' * (len(probs) != 1)} ({time.time() - start:.1f} s)")
    return int(bool(probs))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "."))
