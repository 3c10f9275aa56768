"The house rules: each on a notebook or a package that breaks it once, and on one that is in order"

import sys
from pathlib import Path

import pytest
from execnb.nbio import mk_cell, new_nb, write_nb

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import check, house

ADD = '#| export\ndef add(a, b):\n    "Sum of `a` and `b`"\n    return a+b'


def parsed(*sources):
    "Cells of a notebook: text that begins with `#` and a blank is Markdown, all else code"
    cells = [mk_cell(s, cell_type="markdown" if s.startswith("# ") else "code") for s in sources]
    for i, c in enumerate(cells):
        c.id = f"c{i}"
    return new_nb(cells).cells


def told(*sources):
    return list(house.notebook_problems(parsed(*sources)))


def exported(n):
    return "#| export\n" + "\n".join(f"x{i} = {i}" for i in range(n))


# Notebooks


def test_notebook_in_order():
    imports = "#| export\nimport re\nfrom talking_heads.svd import *"
    assert told("# title", "#| default_exp data", imports, ADD, "assert add(1, 2) == 3") == []


@pytest.mark.parametrize(
    "source, says",
    [
        ("x = '" + "a" * 115 + "'", "a line of 121 characters"),
        ("#| export\ny = 1\n# " + "a" * 119, "a line of 121 characters"),
        ("\n".join(["x = 1"] * 31), "31 lines"),
        ("a = 1; b = 2", "two statements in one line: a = 1; b = 2"),
        ("for i in x: f(i); g(i)", "two statements in one line"),
        ("try: f()\nexcept E: print(1); raise", "two statements in one line"),
        ("if x: f()\nelse: g(); h()", "two statements in one line"),
        ("x = 1 if a else 2 if b else 3", "a condition inside a condition"),
        ("x = (1 if a else 2) if b else 3", "a condition inside a condition"),
        ("hook = lambda x, h: x.__setitem__(0, 1)", "calls __setitem__"),
        ("from talking_heads.svd import _qr", "imports the private name _qr of talking_heads.svd"),
        ("from talking_heads.paper import brief as b\nb._words", "takes the private name _words of b"),
    ],
)
def test_cell_that_breaks_a_rule(source, says):
    (line,) = told("# title", source)
    assert line.startswith("cell 1 (c1): ") and says in line


@pytest.mark.parametrize(
    "source",
    [
        "x = '" + "a" * 114 + "'",
        "\n".join(["x = 1"] * 30),
        "if x: f()\nelse: g()",
        "a, b = 1, 2",
        "x = [1 if a else 2, 3 if b else 4]",
        "from other import _qr\n_qr()",
        "from talking_heads.base.core import Head\nHead._make([1, 2])",
        "%time f(); g()",
        "y = '''a; b'''",
    ],
)
def test_cell_in_order(source):
    assert told(source) == []


def test_text_may_be_wide():
    assert told("# " + "a" * 500) == []


@pytest.mark.parametrize(
    "sources, n",
    [
        ([exported(25), exported(25), exported(11)], 61),  # code, and no text between cells helps
        ([exported(25), "# text", exported(25), "# text", exported(11)], 61),
    ],
)
def test_too_much_unseen(sources, n):
    (line,) = told(*sources)
    assert line.startswith(f"{n} exported lines from cell c0 on without an example")


@pytest.mark.parametrize(
    "sources",
    [
        [exported(20), exported(20), exported(20)],
        [exported(29), exported(29), "x0", exported(29)],
        [exported(20), exported(20), "#| export\nimport re", exported(20)],
        ["#| default_exp data", exported(20), exported(20), exported(20)],
        ["\n".join(["x = 1"] * 30)] * 3,  # nothing of this is exported
    ],
)
def test_seen_at_work(sources):
    assert told(*sources) == []


# The package


@pytest.fixture
def package(tmp_path):
    "A function that writes modules of a package; gives the problems with it"
    root = tmp_path / "talking_heads"

    def write(**modules):
        for name, source in modules.items():
            p = root / f"{name.replace('__', '/')}.py"
            p.parent.mkdir(parents=True, exist_ok=True)
            p.write_text(source)
        return list(house.package_problems(root))

    return write


def test_package_in_order(package):
    assert (
        package(
            base__core="import re",
            data="from .base.core import *",
            svd="from talking_heads.data import x\nimport talking_heads.base.core",
            weights__scan="from ..svd import *\nfrom .nulls import *",
            weights__nulls="__all__ = ['p']",
            commands="from .weights.scan import *",
            _modidx="from .commands import *",
        )
        == []
    )


@pytest.mark.parametrize(
    "line",
    [
        "from talking_heads.commands import *",
        "from ..commands import *",
        "import talking_heads.commands",
        "from .. import commands",
        "from talking_heads import commands",
        "def f():\n    from ..commands import g",
    ],
)
def test_import_that_runs_back(package, line):
    (said,) = package(commands="x = 1", site__docs=line)
    assert said.startswith("talking_heads/site/docs.py:")
    assert said.endswith("site.docs imports commands, which comes later")


def test_import_within_a_wing_may_go_both_ways(package):
    assert package(site__docs="from .explorer import *", site__explorer="x = 1") == []


def test_module_without_a_place(package):
    assert package(extra="x = 1") == ["talking_heads/extra.py: the module extra has no place in the order of imports"]


def test_names_that_say_nothing(package):
    (said,) = package(data="__all__ = ['train', 'laundry_list']")
    assert "`train` says nothing" in said


def test_name_of_two_modules(package):
    said = package(data="__all__ = ['a', 'b']", svd="__all__ = ['b', 'c']")
    assert said == ["talking_heads/svd.py: `b` is public in talking_heads/data.py too"]


# As a part of the fast check

SETTINGS = """[DEFAULT]
repo = talking_heads
lib_name = talking_heads
lib_path = talking_heads
nbs_path = nbs
user = someone
author = Someone
version = 0.0.1
branch = main
doc_host = https://example.org
"""


@pytest.fixture
def checkout(tmp_path):
    "A checkout with one notebook and one module, both against the rules"
    root = tmp_path.resolve()
    (root / "settings.ini").write_text(SETTINGS)
    for folder in ("nbs/runs", "talking_heads"):
        (root / folder).mkdir(parents=True)
    faulty = new_nb(parsed("# data", "a = 1; b = 2"))
    for name in ("nbs/00_data.ipynb", "nbs/runs/report.ipynb"):
        write_nb(faulty, root / name)
    (root / "nbs" / "broken.ipynb").write_text("{ not a notebook")
    (root / "talking_heads" / "data.py").write_text("from .commands import *")
    return root


def test_check_tells_notebook_and_module(checkout, monkeypatch):
    "With the rules in force, one line for each fault; stored runs are reports"
    monkeypatch.setattr(check, "HOUSE", True)
    assert list(check.check_house(checkout)) == [
        "nbs/00_data.ipynb: cell 1 (c1): two statements in one line: a = 1; b = 2",
        "talking_heads/data.py:1: data imports commands, which comes later",
    ]


def test_rules_not_in_force(checkout, monkeypatch):
    monkeypatch.setattr(check, "HOUSE", False)
    assert list(check.check_house(checkout)) == []


def test_one_bound_on_height(monkeypatch):
    "The fast check has a bound of its own only while the rules are not in force"
    (cell,) = parsed("\n".join(["x = 1"] * 31))
    monkeypatch.setattr(check, "HOUSE", False)
    assert ["31 lines" in o for o in check.style(cell)] == [True]
    monkeypatch.setattr(check, "HOUSE", True)
    assert list(check.style(cell)) == []
