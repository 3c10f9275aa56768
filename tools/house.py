"The house rules that code and chapters keep, as functions of parsed notebooks; `tools/check.py` runs them"

import ast
import re
from itertools import groupby
from pathlib import Path

from nbdev.process import extract_directives

PACKAGE = "talking_heads"
WIDTH = 120  # characters in a line of code, exported or not
CELL = 30  # lines in a cell
UNSEEN = 60  # exported lines between two cells that show them at work
# Imports run from left to right and never back. A name with a dot stands for one module, the others for a whole wing.
ORDER = (
    "base",
    "data",
    "hooks",
    "svd",
    "composition",
    "interventions",
    "evaluation",
    "charts",
    "weights",
    "tasks",
    "circuits",
    "toys",
    "edits",
    "paper",
    "site",
    "commands",
)
BARE = {"yes", "no", "best", "train", "movers"}  # names that say nothing where a star import puts them
NAMED_TUPLE = {"_make", "_replace", "_asdict", "_fields"}  # public, whatever their names say
EXPORTS = {"export", "exports", "exporti"}


def directives(cell):
    "Names of the `#|` lines of a code cell"
    return set(extract_directives(cell, remove=False)) if cell.cell_type == "code" else set()


def exported(cell):
    return bool(directives(cell) & EXPORTS)


def lines(cell):
    "Lines of code, without directives, blank lines and comments that stand alone"
    return [o for o in cell.source.splitlines() if o.strip() and not o.lstrip().startswith("#")]


def parsed(cell):
    "The syntax tree of a code cell, or nothing where it is no plain Python"
    try:
        return ast.parse(cell.source)
    except SyntaxError:
        return None


# Cell by cell


def width(cell):
    "Lines that are too wide"
    if cell.cell_type != "code":
        return
    for o in cell.source.splitlines():
        if len(o) > WIDTH:
            yield f"a line of {len(o)} characters; {WIDTH} at most: {o.strip()[:40]} ..."


def height(cell):
    "Cells that are too tall"
    n = len(cell.source.splitlines())
    if n > CELL:
        yield f"{n} lines; more than {CELL} are too many for one cell"


def bodies(node):
    "Lists of statements that a node holds"
    held = (getattr(node, k, None) for k in ("body", "orelse", "finalbody"))
    return [o for o in held if isinstance(o, list)]


def statements(cell):
    "Lines with more than one statement, conditions inside conditions, hooks that assign inside a lambda"
    tree = parsed(cell) if cell.cell_type == "code" else None
    if tree is None:
        return
    nodes, rows = list(ast.walk(tree)), cell.source.splitlines()
    for body in (b for n in nodes for b in bodies(n)):
        for a, b in zip(body, body[1:]):
            if b.lineno == a.end_lineno:
                yield f"two statements in one line: {rows[b.lineno - 1].strip()[:60]}"
    for n in nodes:
        parts = (n.body, n.orelse, n.test) if isinstance(n, ast.IfExp) else ()
        if any(isinstance(o, ast.IfExp) for o in parts):
            yield f"a condition inside a condition: {ast.unparse(n)[:60]}"
        is_hook = isinstance(n, ast.Attribute) and n.attr == "__setitem__"
        if is_hook:
            yield "calls __setitem__; write a small `def` that assigns"


def private_imports(cell):
    "Private names taken from another module of the package"
    tree = parsed(cell) if cell.cell_type == "code" else None
    nodes = list(ast.walk(tree)) if tree else []
    ours = [n for n in nodes if isinstance(n, ast.ImportFrom) and (n.module or "").partition(".")[0] == PACKAGE]
    for n in ours:
        for a in n.names:
            if a.name.startswith("_") and not a.name.startswith("__"):
                yield f"imports the private name {a.name} of {n.module}"
    modules = {a.asname or a.name for n in ours for a in n.names}
    for n in nodes:
        is_attribute = isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
        if is_attribute and n.value.id in modules and re.match(r"_[^_]", n.attr) and n.attr not in NAMED_TUPLE:
            yield f"takes the private name {n.attr} of {n.value.id}"


# Notebook by notebook


def unseen(cells):
    "Runs of exported lines that no cell shows at work"
    code = [c for c in cells if c.cell_type == "code" and "default_exp" not in directives(c)]
    for is_exported, run in groupby(code, exported):
        run = list(run)
        n = sum(len(lines(c)) for c in run if not only_imports(c))
        if is_exported and n > UNSEEN:
            yield f"{n} exported lines from cell {run[0].id} on without an example; {UNSEEN} at most"


def only_imports(cell):
    "Does a cell do nothing but import?"
    tree = parsed(cell)
    return tree is not None and all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in tree.body)


# The package


def rank(module):
    "Place of a module within the package in the order of imports; None for a module that stands outside it"
    part = module.partition(".")[0]
    return ORDER.index(part) if part in ORDER else None


def imports(path, package):
    "Modules of the package that a module imports, with the line"
    module = path.relative_to(package).with_suffix("").as_posix().replace("/", ".")
    for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(n, ast.Import):  # `import talking_heads.svd`
            yield from ((a.name.partition(".")[2], n.lineno) for a in n.names if a.name.startswith(f"{package.name}."))
        if not isinstance(n, ast.ImportFrom):
            continue
        full = (n.module or "").split(".") if n.module else []
        if n.level:
            full = [package.name, *module.split(".")][: -n.level] + full
        if full[:1] == [package.name] and len(full) > 1:
            yield ".".join(full[1:]), n.lineno
        elif full == [package.name]:
            yield from ((a.name, n.lineno) for a in n.names)


def upward(package):
    "Imports that run back, wing by wing"
    for p in sorted(package.rglob("[!_]*.py")):
        module = p.relative_to(package).with_suffix("").as_posix().replace("/", ".")
        if rank(module) is None:
            yield f"{p.relative_to(package.parent)}: the module {module} has no place in the order of imports"
            continue
        for other, line in imports(p, package):
            if rank(other) is not None and rank(other) > rank(module):
                yield f"{p.relative_to(package.parent)}:{line}: {module} imports {other}, which comes later"


def public(path):
    "The names in a module's `__all__`"
    for n in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__":
            return ast.literal_eval(n.value)
    return []


def names(package):
    "Public names that two modules share, and names that say nothing"
    seen = {}
    for p in sorted(package.rglob("[!_]*.py")):
        file = p.relative_to(package.parent).as_posix()
        for name in public(p):
            if name in BARE:
                yield f"{file}: `{name}` says nothing where it is imported with a star"
            if name in seen:
                yield f"{file}: `{name}` is public in {seen[name]} too"
            seen[name] = file


CELL_RULES = (width, height, statements, private_imports)
PACKAGE_RULES = (upward, names)


def notebook_problems(cells):
    "What the rules say against a parsed notebook, cell by cell and then as a whole"
    for i, c in enumerate(cells):
        yield from (f"cell {i} ({c.id}): {o}" for rule in CELL_RULES for o in rule(c))
    yield from unseen(cells)


def package_problems(package):
    "What the rules say against the exported package"
    for rule in PACKAGE_RULES:
        yield from rule(package)
