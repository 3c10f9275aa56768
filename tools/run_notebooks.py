"Run notebooks top to bottom and store their outputs, cleaned: `python tools/run_notebooks.py nbs/base/core.ipynb ...`"

import os
import sys
from pathlib import Path

import nbformat
from execnb.nbio import read_nb, write_nb
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbdev.clean import clean_nb

from talking_heads.base.checkpoints import gpt2_small
from talking_heads.commands import own_kernel

ANYWAY = "--without-gpt2"


def lacks_gpt2(nb) -> bool:
    "Does a notebook show GPT-2 small's weights where this machine has none? It would be stored without these outputs."
    return gpt2_small() is None and any("gpt2_small()" in c.source for c in nb.cells if c.cell_type == "code")


def store(nb, path: Path) -> None:
    "Write a notebook clean, whole or not at all"
    part = path.with_name(f".{path.name}.part")
    nbformat.write(nb, part)
    clean = read_nb(part)
    clean_nb(clean, allowed_cell_metadata_keys=["tags"])
    write_nb(clean, part)
    os.replace(part, path)


def execute(nb, folder: Path) -> str:
    "Run all cells in `folder`; the reason if they did not get to the end, or were not quiet"
    with own_kernel() as manager:
        client = NotebookClient(
            nb,
            timeout=1800,
            kernel_manager_class=manager,
            extra_arguments=["--log-level=40"],
            resources={"metadata": {"path": str(folder)}},
        )
        try:
            client.execute()
        except CellExecutionError as e:
            return f"a cell failed: {e.ename}: {e.evalue}"
        except DeadKernelError:
            return "its process died, perhaps for lack of memory"
    noisy = [i for i, c in enumerate(nb.cells) for o in c.get("outputs", []) if o.get("name") == "stderr"]
    return f"cells {noisy} wrote to stderr; a stored notebook must be quiet" if noisy else ""


def run(path: Path, anyway: bool = False) -> bool:
    "Execute `path` in its own folder and store it; one that fails is put beside it, and what was stored stays"
    nb, failed = nbformat.read(path, 4), path.with_name(f".{path.stem}.failed.ipynb")
    if lacks_gpt2(nb) and not anyway:
        print(
            f"{path}: it shows GPT-2 small's weights, which are not here, and would lose those outputs. "
            f"Name a folder that has them in TALKING_HEADS_GPT2, or pass {ANYWAY}.",
            file=sys.stderr,
        )
        return False
    try:
        reason = execute(nb, path.parent)
    except BaseException:
        store(nb, failed)
        print(f"{path}: interrupted. What was run so far is in {failed}; {path} is as it was.", file=sys.stderr)
        raise
    store(nb, failed if reason else path)
    if reason:
        print(f"{path}: {reason}. What was run is in {failed}; {path} is as it was.", file=sys.stderr)
    else:
        failed.unlink(missing_ok=True)
    return not reason


if __name__ == "__main__":
    paths = [Path(p) for p in sys.argv[1:] if p != ANYWAY]
    bad = []
    own = [p for p in Path("nbs").rglob("[!.]*.ipynb") if not p.is_symlink() and "runs" not in p.parts]
    for p in paths or sorted(own):
        print(p, flush=True)
        if not run(p, ANYWAY in sys.argv):
            bad.append(p)
    if bad:
        sys.exit(f"Not stored: {', '.join(map(str, bad))}")
