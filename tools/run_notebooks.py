"Run notebooks top to bottom and store their outputs, cleaned: `python tools/run_notebooks.py nbs/core.ipynb ...`"
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbdev.clean import clean_nb
from execnb.nbio import read_nb, write_nb

def run(path: Path) -> None:
    "Execute `path` in its own folder, refuse noise on stderr, and write it back clean"
    nb = nbformat.read(path, 4)
    NotebookClient(nb, timeout=1800, kernel_name="python3", extra_arguments=["--log-level=40"],
                   resources={"metadata": {"path": str(path.parent)}}).execute()
    noisy = [i for i, c in enumerate(nb.cells) for o in c.get("outputs", []) if o.get("name") == "stderr"]
    nbformat.write(nb, path)
    clean = read_nb(path)
    clean_nb(clean, allowed_cell_metadata_keys=["tags"])
    write_nb(clean, path)
    if noisy: raise SystemExit(f"{path}: cells {noisy} wrote to stderr; a stored notebook must be quiet")

if __name__ == "__main__":
    paths = [Path(p) for p in sys.argv[1:]]
    for p in paths or sorted(p for p in Path("nbs").glob("*.ipynb") if not p.is_symlink()):
        print(p, flush=True)
        run(p)
