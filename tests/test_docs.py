"The site: what is read from the notebooks, what is written, and how every page behaves in a real browser"

import json, re, sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

from talking_heads.site import docs
from talking_heads.site.addresses import *
from talking_heads.site.cards import *
from talking_heads.site.docs import *
from talking_heads.site.notebook_pages import *
from talking_heads.site.site_sources import *
from talking_heads.site.symbols import *

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from browser import VIEWS, page_costs, served, settled, take_screenshots

for need in ("smalldocs", "latex2mathml", "vl_convert"):
    if not find_spec(need):
        pytest.skip(f"{need} is not installed; `make setup` installs it", allow_module_level=True)

# What the source says of a symbol, against what Python says of it


def test_symbols_agree_with_inspect():
    "Names, defaults and docstrings read from the text are those of the imported functions"
    import inspect
    from talking_heads.base import core
    from talking_heads.paper import sections as runs

    for mod in (core, runs):
        found = {s.name: s for s in symbols(Path(mod.__file__).read_text())}
        own = [
            o for n, o in vars(mod).items() if getattr(o, "__module__", "") == mod.__name__ and not n.startswith("_")
        ]
        public = list(filter(inspect.isfunction, own))
        for f in public:
            f = inspect.unwrap(f)
            sig = inspect.signature(f)
            assert [p[0].lstrip("*") for p in found[f.__name__].params] == list(sig.parameters)
            assert found[f.__name__].doc == inspect.getdoc(f)
            for (name, _, default, _), p in zip(found[f.__name__].params, sig.parameters.values()):
                assert (default == "") == (p.default is inspect.Parameter.empty), (f, name)
        classes = {c.__name__ for c in filter(inspect.isclass, own)}
        assert classes <= found.keys() and {f.__name__ for f in public} <= found.keys()


@pytest.mark.parametrize(
    "source, params, returns, raises",
    [
        (
            "def f(a:int, # one\n      b=2, # two\n     )->str: # three\n    'd'",
            (("a", "int", "", "one"), ("b", "", "2", "two")),
            ("str", "three"),
            (),
        ),
        ("def f(a, b): # back\n    'd'", (("a", "", "", ""), ("b", "", "", "")), ("", "back"), ()),
        (
            "def f(*xs, # many\n      k=1, # key\n      **kw # rest\n     ):\n    'd'",
            (("*xs", "", "", "many"), ("k", "", "1", "key"), ("**kw", "", "", "rest")),
            ("", ""),
            (),
        ),
        ("def f(a,b, # both\n     ):\n    'd'", (("a", "", "", ""), ("b", "", "", "both")), ("", ""), ()),
        (
            "def f(o:Param('where',str)=None,\n      q:Param('quiet',store_true)=False):\n    'd'",
            (("o", "str", "None", "where"), ("q", "flag", "False", "quiet")),
            ("", ""),
            (),
        ),
        (
            "def f(a):\n    'finds; raises `HeadError` if not'\n    raise ModelError('x')",
            (("a", "", "", ""),),
            ("", ""),
            ("HeadError", "ModelError"),
        ),
    ],
)
def test_parameters(source, params, returns, raises):
    (s,) = symbols(source)
    assert (s.params, s.returns, s.raises) == (params, returns, raises)


def test_classes_and_patches():
    a, run, b = symbols("""
@dataclass
class A:
    "One"
    x:int # width
    y:str="n" # name
    def run(self, n=1): "Go"
    def _no(self): "No"
@patch
def more(self:A, k): "More"
""")
    assert (a.kind, a.call, a.params) == (
        "class",
        "A(x, y='n')",
        (("x", "int", "", "width"), ("y", "str", "'n'", "name")),
    )
    assert (run.name, run.call, run.anchor) == ("A.run", "A.run(n=1)", "a.run")
    assert (b.name, b.kind, [p[0] for p in b.params]) == ("A.more", "method", ["k"])


@pytest.mark.parametrize(
    "text, want",
    [
        ("see `f`", "see [`f`](a.html#f)"),
        ("see `f(2)` and `g`", "see [`f(2)`](a.html#f) and `g`"),
        ("[`f`](x.md)", "[`f`](x.md)"),
        ("``f``", "``f``"),
        ("~~~\n`f`\n~~~", "~~~\n`f`\n~~~"),
        ("## `f`", "## `f`"),
        ("````\n```\n`f`\n````\n`f`", "````\n```\n`f`\n````\n[`f`](a.html#f)"),
    ],
)
def test_links_on_symbols(text, want):
    assert linked(text, {"f": "a.html#f"}) == want


# A small project that can be broken

SETTINGS = (ROOT / "settings.ini").read_text()
SITE = """project: {type: website}
website:
  title: tiny
  sidebar: {style: docked, contents: [{section: Start, contents: [index.ipynb, 01_one.ipynb, later.ipynb]}]}
format: {html: {theme: {light: default, dark: darkly}, toc: true}}
"""


def nb(*cells):
    "A notebook: markdown as text, code as (source, outputs)"
    made = [
        dict(cell_type="markdown", metadata={}, source=c)
        if isinstance(c, str)
        else dict(cell_type="code", metadata={}, source=c[0], outputs=list(c[1:]), execution_count=None)
        for c in cells
    ]
    return json.dumps(dict(cells=made, metadata={}, nbformat=4, nbformat_minor=5))


@pytest.fixture
def tiny(tmp_path):
    "A checkout with two notebooks, one of which exports"
    for d in ("nbs", "talking_heads"):
        (tmp_path / d).mkdir()
    (tmp_path / "settings.ini").write_text(SETTINGS)
    (tmp_path / "nbs" / "_quarto.yml").write_text(SITE)
    (tmp_path / "index.ipynb").write_text(nb("# tiny\n\n> Small", "It has `go` and a formula, $s^2$."))
    (tmp_path / "nbs" / "index.ipynb").symlink_to("../index.ipynb")
    source = 'def go(n:int, # steps\n      )->int: # where it stands\n    "Walk"\n    raise HeadError("no")'
    code = [("#| default_exp one",), ("#| hide\nsecret = 1",), (f"#| export\n{source}",)]
    one = nb("# one\n\n> First", *code, "## Go\n\nBack to [home](index.ipynb).")
    (tmp_path / "nbs" / "01_one.ipynb").write_text(one)
    (tmp_path / "talking_heads" / "one.py").write_text(source)
    syms = {"talking_heads.one": {"talking_heads.one.go": ("one.html#go", "x")}}
    (tmp_path / "talking_heads" / "_modidx.py").write_text(f"d = {dict(settings={}, syms=syms)}")
    return tmp_path


def test_small_site(tiny):
    out = build_docs(tiny, tiny / "_docs")
    one, index = (out / "one.html").read_text(), (out / "index.html").read_text()
    assert 'href="one.html#go"' in index and "<msup><mi>s</mi>" in index and "katex" not in index
    assert 'id="go"' in one and 'id="about-go"' in one and 'href="index.html"' in one
    assert "steps" in one and "where it stands" in one and "HeadError" in one and "talking_heads/one.py#L1" in one
    assert "secret" not in one and "default_exp" not in one and "later" not in index
    assert link_faults(out) == []


def test_forgotten_notebook_is_in_the_sidebar(tiny):
    (tiny / "nbs" / "new_chapter.ipynb").write_text(nb("# A new chapter"))
    out = build_docs(tiny, tiny / "_docs")
    assert 'href="new_chapter.html"' in (out / "one.html").read_text()


def test_runs_are_pages(tiny):
    (tiny / "nbs" / "runs").mkdir()
    (tiny / "nbs" / "runs" / "toy.ipynb").write_text(nb("# A run", "It calls `go`."))
    out = build_docs(tiny, tiny / "_docs")
    assert 'href="../one.html#go"' in (out / "runs" / "toy.html").read_text()


def test_runs_have_a_section_of_their_own():
    "A folder in the sidebar stands for all its pages; one without pages is left out"
    contents = [dict(section="Start", contents=["index.ipynb"]), dict(section="Results", contents=["runs/*"])]
    pages = ["index.ipynb", "runs/a.ipynb", "runs/b.ipynb", "new.ipynb"]
    results = dict(section="Results", contents=["runs/a.ipynb", "runs/b.ipynb"])
    assert sidebar(contents, pages) == [contents[0], results, dict(section="More", contents=["new.ipynb"])]
    assert sidebar(contents, pages[:1]) == contents[:1]


def test_broken_link_is_told(tiny):
    (tiny / "nbs" / "01_one.ipynb").write_text(nb("# one", "[there](nowhere.ipynb) and [here](index.ipynb#missing)"))
    with pytest.raises(DocsError, match="(?s)nowhere.*|missing"):
        build_docs(tiny, tiny / "_docs")


def test_outside_request_is_told(tiny):
    (tiny / "nbs" / "01_one.ipynb").write_text(nb("# one", '<img src="https://example.org/a.png" alt="a">'))
    with pytest.raises(DocsError, match="example.org.*another site"):
        build_docs(tiny, tiny / "_docs")


def test_failed_build_keeps_the_last_site(tiny):
    out = build_docs(tiny, tiny / "_docs")
    before = (out / "one.html").read_bytes()
    (tiny / "nbs" / "01_one.ipynb").write_text("{ not a notebook")
    with pytest.raises(DocsError, match="01_one.ipynb"):
        build_docs(tiny, tiny / "_docs")
    assert (out / "one.html").read_bytes() == before


def test_refuses_a_folder_that_is_no_site(tiny):
    (tiny / "mine").mkdir()
    (tiny / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DocsError, match="not a built site"):
        build_docs(tiny, tiny / "mine")
    assert (tiny / "mine" / "thesis.txt").read_text() == "years of work"


def test_refuses_a_file_and_a_repository(tiny):
    (tiny / "mine").write_text("years of work")
    with pytest.raises(DocsError, match="a file"):
        build_docs(tiny, tiny / "mine")
    assert (tiny / "mine").read_text() == "years of work"
    (tiny / "clone" / ".git").mkdir(parents=True)
    (tiny / "clone" / "site_libs").mkdir()
    with pytest.raises(DocsError, match="git repository"):
        build_docs(tiny, tiny / "clone")


@pytest.mark.parametrize(
    "first, texts",
    [
        ("No heading, `go`", ["No heading, [`go`](one.html#go)"]),
        (
            "# One\n\n> First\n\nSee [data](../00_data.ipynb) and `go`.\n\n## Go",
            ["See [data](data.ipynb) and [`go`](one.html#go).\n\n## Go"],
        ),
        ("# One", []),
    ],
)
def test_first_cell(first, texts):
    "What stands below title and description is text like any other, once"
    made = site_notebook(json.loads(nb(first, "More")), {"go": "one.html#go"})
    assert [c["source"] for c in made["cells"][1:]] == [*texts, "More"]


def test_moved_page_must_exist(tiny):
    "A sign that leads nowhere, or stands where a page is, stops the build"
    for moved, says in (({"old.html": "gone.html"}, "not there"), ({"one.html": "index.html"}, "a page again")):
        (tiny / "nbs" / "moved.json").write_text(json.dumps(moved))
        with pytest.raises(DocsError, match=says):
            build_docs(tiny, tiny / "_docs")


def test_no_checkout(tmp_path):
    with pytest.raises(DocsError, match="no checkout"):
        build_docs(tmp_path)


def test_sources_are_left_alone(tiny):
    def stamps():
        sources = [p for p in tiny.rglob("*") if p.is_file() and "_docs" not in p.parts]
        return {p: p.read_bytes() for p in sources}

    before = stamps()
    build_docs(tiny, tiny / "_docs")
    assert stamps() == before


def test_no_quarto(tiny, monkeypatch):
    monkeypatch.setattr(docs.shutil, "which", lambda name: None)
    with pytest.raises(DocsError, match="Quarto is not installed"):
        build_docs(tiny, tiny / "_docs", quarto=True)


def test_preview_serves_and_counts(tiny):
    from urllib.request import urlopen
    from urllib.error import URLError

    out = build_docs(tiny, tiny / "_docs", reload=True)
    server, handler = preview_server(out, 0)
    try:
        at = f"http://127.0.0.1:{server.server_address[1]}"
        assert b"__smalldocs__/version" in urlopen(f"{at}/one.html").read()
        before = int(urlopen(f"{at}/__smalldocs__/version").read())
        handler.version += 1
        assert int(urlopen(f"{at}/__smalldocs__/version").read()) == before + 1
    finally:
        server.shutdown()


# The whole site, as files


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The site of this checkout; building it checks every link and anchor"
    return build_docs(ROOT, tmp_path_factory.mktemp("site") / "_docs")


MOVED = json.loads((ROOT / "nbs" / "moved.json").read_text())
PAGES = sorted(
    [page_name(p) + ".html" for p in (ROOT / "nbs").rglob("[!_.]*.ipynb")] + ["changelog.html", "citation.html"]
)


def test_every_notebook_is_a_page(site):
    assert sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html")) == sorted([*PAGES, *MOVED, "404.html"])
    home = (site / "index.html").read_text()
    assert [p for p in PAGES if f'href="{p}"' not in home and not p.startswith("index")] == []


def test_links_and_anchors(site):
    assert link_faults(site) == []


def test_every_symbol_has_its_place(site):
    index = symbol_index(read_modidx(ROOT))
    ids = {p: set(re.findall(r'\bid="([^"]+)"', (site / p).read_text())) for p in PAGES}
    missing = {a for a in index.values() if a.split("#")[1] not in ids.get(a.split("#")[0], ())}
    assert len(index) > 200 and not missing


def test_no_raw_formula_is_left(site):
    for p in PAGES:
        text = re.sub(r"<(script|pre|code)\b.*?</\1>", "", (site / p).read_text(), flags=re.S)
        assert not re.search(r"\\[(\[]|\$\$|\\(frac|sum|lVert)", text), p


def weight(page):
    "Bytes that a browser reads for a page: itself, what it loads, and Vega where it draws"
    parsed = PageLinks(page.read_text())
    files = {(page.parent / a).resolve() for a in parsed.loads if not a.startswith("data:")}
    vega = page.parent / vega_file
    if "th-chart" in page.read_text():
        files.add(vega)
    return sum(f.stat().st_size for f in [page, *files])


def test_no_page_is_heavy(site):
    sizes = {p: weight(site / p) for p in PAGES if "/" not in p}
    assert max(sizes.values()) < 3_000_000, max(sizes, key=sizes.get)


def test_vega_is_there_once(site):
    big = [p for p in site.rglob("*.js") if p.stat().st_size > 600_000 and p.name != "search.js"]
    assert big == [site / vega_file]
    assert not any("cdn.jsdelivr" in re.sub(r"<pre.*?</pre>", "", (site / p).read_text(), flags=re.S) for p in PAGES)


# Every page in a browser


@pytest.fixture(scope="session")
def server(site):
    "Address of the site on a plain file server"
    with served(site) as at:
        yield at


OURS = "http://127.0.0.1", "file:", "data:", "blob:"


@pytest.fixture(scope="session")
def tab(chrome):
    "One tab for each view; `seen` collects what it complains about and what it asks for"
    tabs = {}
    for view, (width, scheme) in VIEWS.items():
        t = tabs[view] = chrome.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
        t.seen = []
        t.on("console", lambda m, t=t: m.type in ("error", "warning") and t.seen.append(f"{m.type}: {m.text}"))
        t.on("pageerror", lambda e, t=t: t.seen.append(f"exception: {e}"))
        t.on("request", lambda r, t=t: r.url.startswith(OURS) or t.seen.append(f"asks for {r.url}"))
        t.on("requestfailed", lambda r, t=t: t.seen.append(f"failed: {r.url}"))
    return tabs


def opened(tab, address):
    "The page in a tab, all charts drawn"
    tab.seen.clear()
    tab.goto(address)
    settled(tab)
    return tab


@pytest.fixture(scope="session")
def axe():
    "Source of axe-core, from the package that carries it"
    spec = find_spec("axe_playwright_python")
    if not spec:
        pytest.skip("axe_playwright_python is not installed; `make setup` installs it")
    return (Path(spec.origin).parent / "axe.min.js").read_text()


SCRIPT = (ROOT / "tests" / "pages.js").read_text()


def asked(of, name, *args):
    "What a function of pages.js answers about a page or a chart"
    if not hasattr(of, "goto"):
        return of.evaluate(f"(chart, more) => {SCRIPT}.{name}(chart, ...more)", list(args))
    return of.evaluate(f"more => {SCRIPT}.{name}(...more)", list(args))


def serious(tab, axe, *rules):
    "What axe calls serious or critical, by all its rules or by those named"
    tab.evaluate(axe)
    asked(tab, "markAlike")
    return [(i, rule, nodes[:4]) for i, rule, nodes in asked(tab, "violations", *rules) if i in ("serious", "critical")]


# Charts that answer


MARKS = "svg .role-mark:not(.mark-group) > path, svg .role-mark:not(.mark-group) > line, svg .role-mark > text"

LEGEND = "svg .role-legend-symbol path, svg .role-legend-label text"


def hovered(t, chart):
    "Does a mark of the chart tell about itself under the mouse?"
    for x, y in asked(chart, "spots", MARKS):
        t.mouse.move(x, y)
        t.mouse.move(x + 0.5, y + 0.5)
        if asked(t, "tooltip"):
            return True
    return False


def answers(t, chart, how):
    "Does the chart look different after a click on a mark, a click in the legend, or a turn of its control?"
    before = asked(chart, "drawn")
    if how == "control":
        asked(chart, "turn")
        t.wait_for_timeout(150)
        return asked(chart, "drawn") != before
    for x, y in asked(chart, "spots", LEGEND if how == "legend" else MARKS):
        t.mouse.click(x, y)
        t.wait_for_timeout(60)
        if asked(chart, "drawn") != before:
            return True
    return False


def silent(t):
    "Charts that tell about no mark under the mouse, or break the promise of a click, a legend or a control"
    found = []
    for chart in t.query_selector_all(".th-chart:not([hidden])"):
        name = chart.get_attribute("id")
        if not hovered(t, chart):
            found.append(f"{name}: no tooltip")
        for p in asked(chart, "promises"):
            if p["how"] == "interval" or answers(t, chart, p["how"]):
                continue
            found.append(f"{name}: {p['name']} ({p['how']}) changes nothing")
    return found


def sticking_out(t):
    "Charts that are still too wide for their place some seconds after they were drawn: fitting takes several tries"
    for _ in range(100):
        found = [c for c in asked(t, "charts") if c["wide"] > 1]
        if not found:
            break
        t.wait_for_timeout(200)
    return found


# A page is opened twice, and looked at in every way that its view allows


@pytest.mark.parametrize("page", PAGES)
def test_page_light(server, tab, axe, page):
    "On a server, light: no complaint, nothing from outside, no serious fault, charts with marks and words that answer"
    t = opened(tab["light"], f"{server}/{page}")
    assert [c for c in asked(t, "charts") if not (c["marks"] and c["said"] > 10)] == []
    assert t.seen == [] and serious(t, axe) == []
    assert silent(t) == [] and t.seen == []


@pytest.mark.parametrize("page", PAGES)
def test_page_narrow_then_dark(site, tab, axe, page):
    """From a folder, in the dark. On a telephone's width nothing sticks out of the page, and no chart out of its place;
    then, turned wide, text can be read. The rest of axe's rules ask nothing of colours"""
    t = tab["dark"]
    t.set_viewport_size(dict(width=VIEWS["narrow"][0], height=900))
    opened(t, (site / page).as_uri())
    assert t.evaluate("document.documentElement.scrollWidth") <= 391
    assert sticking_out(t) == [] and t.seen == []
    t.set_viewport_size(dict(width=VIEWS["dark"][0], height=900))
    assert asked(t, "isDark")
    assert t.seen == [] and serious(t, axe, "color-contrast") == []


PANELS = {
    "layer": lambda p: p,
    "facet": lambda p: p.facet("k:N", columns=3),
    "row of panels": lambda p: p | p | p,
    "row of unlike panels": lambda p: p | p.properties(width=150),
    "grid": lambda p: (p | p) & (p | p),
    "facet by column": lambda p: p.facet(column="k:N"),
    "long labels": lambda p: p.encode(y="long:N"),
}


def test_panels_find_their_place(chrome, site, tmp_path):
    "Whatever way panels are put together, a narrow page shows all of it, and a wide one keeps them beside each other"
    import altair as alt, pandas as pd
    from talking_heads.base.vega import chart_html

    label = "a very long label of a row " * 2
    rows = [dict(x=i, y=i % 3, k=f"panel {k}", long=f"{label}{i}") for k in range(3) for i in range(5)]
    df = pd.DataFrame(rows)
    base = alt.Chart(df, width=300, height=60).mark_point().encode(x="x:Q", y="y:Q", tooltip="x:Q")
    for name, make in PANELS.items():
        (tmp_path / "a.html").write_text(
            f"<body>{chart_html(make(base).to_dict(), [(site / vega_file).as_uri()])}</body>"
        )
        for width in (390, 1400):
            t = chrome.new_page(viewport=dict(width=width, height=900))
            t.goto((tmp_path / "a.html").as_uri())
            settled(t)
            wide, tall = asked(t.query_selector(".th-chart"), "size")
            t.close()
            assert wide <= 1, (name, width)
            if name in ("facet", "row of panels"):
                assert (tall > 200) == (width == 390), (name, width, tall)


def test_costs_of_a_page(chrome, site):
    "A page with charts loads Vega once, and another page takes it from the cache; home does without"
    charts, words, home = page_costs(site, ["one_direction.html", "glossary.html", "index.html"], 1)
    assert charts["vega_loads"] == 1 and charts["charts"] >= 1 and charts["vega_again"] < 2000
    assert 0 < charts["ready"] <= charts["drawn"]
    assert words["vega_loads"] == words["charts"] == 0 and 1e5 < words["bytes"] < charts["bytes"] < 3e6
    assert home["vega_loads"] == 0 and home["bytes"] < 1e6 and home["ready"] < 2


def test_moved_page_leads_on(tab, tmp_path):
    "An old address leads to the new one, and to the same place on it, from a folder"
    (tmp_path / "new.html").write_text("<p id='x'>here</p>")
    put_signs(tmp_path, {"old.html": "new.html"})
    tab["light"].goto((tmp_path / "old.html").as_uri() + "#x")
    tab["light"].wait_for_url((tmp_path / "new.html").as_uri() + "#x")


def test_screenshots(chrome, tmp_path):
    "One picture for each page and view"
    (tmp_path / "site" / "runs").mkdir(parents=True)
    for name in ("index", "runs/toy"):
        (tmp_path / "site" / f"{name}.html").write_text("<p>here</p>")
    with ThreadPoolExecutor(1) as own:  # `chrome` already drives a browser in this thread
        shots = own.submit(take_screenshots, tmp_path / "site", tmp_path / "shots").result()
    assert sorted(p.name for p in shots) == sorted(f"{n}-{v}.png" for n in ("index", "runs-toy") for v in VIEWS)
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in shots)


# Search, and the switch between light and dark


@pytest.mark.parametrize(
    "words, where, said",
    [
        ("find_channels", "channels.html#find_channels", "find_channels"),
        ("grouped queries share", "architectures.html", "Architectures"),
    ],
)
@pytest.mark.parametrize("way", ["server", "folder"])
def test_search(site, server, tab, way, words, where, said):
    "A symbol and a phrase are found, and the result leads there, from a server and from a folder"
    t = opened(tab["light"], f"{server}/core.html" if way == "server" else (site / "core.html").as_uri())
    t.fill(".smalldocs-search input", words)
    t.wait_for_selector(".search-result")
    found = t.query_selector_all(".search-result")
    hits = [(r.get_attribute("href").replace("./", ""), r.text_content()) for r in found]
    hit = next((i for i, (href, _) in enumerate(hits) if href.startswith(where)), None)
    assert hit is not None and said in hits[hit][1], hits
    t.click(f".search-result >> nth={hit}")
    t.wait_for_url(f"**/{where.split('#')[0]}*")
    assert [s for s in t.seen if not s.startswith("failed: ")] == []  # a page that is left stops loading


TERMS = {
    "composition score": "glossary.html#term-composition-score",
    "inhibition": "glossary.html#term-inhibition",
    "what is a channel": "glossary.html#term-channel",
    "crowding": "glossary.html#term-crowding",
    "logit difference": "glossary.html#term-logit-difference",
    "residual stream": "glossary.html#term-residual-stream",
    "laundry list": "glossary.html#term-laundry-list",
    "robust z": "glossary.html#term-robust-z",
    "mediation": "glossary.html#term-mediation",
    "duplicate-token head": "glossary.html#term-duplicate-token-head",
}


def test_definitions_come_first(server, tab):
    "Of ten terms the search gives the definition first, and the result leads to its place"
    t = opened(tab["light"], f"{server}/core.html")
    wrong = {}
    for words, where in TERMS.items():
        t.fill(".smalldocs-search input", "")
        t.fill(".smalldocs-search input", words)
        t.wait_for_timeout(150)
        t.wait_for_function("() => document.querySelector('.search-result')")
        first = t.query_selector(".search-result").get_attribute("href").replace("./", "")
        if not first.startswith(where):
            wrong[words] = first
    assert wrong == {}
    t.goto(f"{server}/glossary.html")
    assert t.locator("[id='term-composition-score']").count() == 1


def test_skip_link(server, tab):
    "The first stop of the keyboard leads past the menus to the content"
    t = opened(tab["light"], f"{server}/index.html")
    t.keyboard.press("Tab")
    assert t.evaluate("document.activeElement.className") == "th-skip"
    assert t.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    t.keyboard.press("Enter")
    t.keyboard.press("Tab")
    assert t.evaluate("document.querySelector('#quarto-document-content').contains(document.activeElement)")


@pytest.mark.parametrize("page", ["index.html", "one_direction.html", "claims_by_model.html"])
def test_print(server, tab, page):
    "On paper there is the text and nothing to click, over the whole width"
    t = opened(tab["light"], f"{server}/{page}")
    t.emulate_media(media="print")
    gone = "#quarto-header", "#quarto-sidebar", "#quarto-margin-sidebar", ".th-slide"
    assert all(not t.locator(s).first.is_visible() for s in gone if t.locator(s).count())
    box = t.locator("main.content").bounding_box()
    assert box["x"] < 40 and box["width"] > 1100
    t.emulate_media(media="screen")


def test_missing_page(site):
    "An address that is not there gets a page that leads home and asks for nothing else"
    page = PageLinks((site / "404.html").read_text(encoding="utf-8"))
    assert page.links == ["index.html"] and page.loads == []


# Answers first

STUDIES = "lifting variety forecast trace_study crowding board removal steering detection contrasts audit".split()


@pytest.mark.parametrize("page", STUDIES)
def test_studies_answer_first(server, tab, page):
    "Question, answer and chart begin on the first screen; code is folded, tables of arguments come last"
    t = opened(tab["light"], f"{server}/{page}.html")
    at = t.evaluate("""() => {
      const top = e => e ? e.getBoundingClientRect().top + scrollY : Infinity
      const all = s => [...document.querySelectorAll(s)]
      const open = all("main pre.sourceCode").filter(e => e.offsetParent && !e.closest("details"))
      return {answer: top(all("main p").find(e => /^(The )?answer/i.test(e.textContent))),
        chart: top(all(".th-chart svg")[0]),
        method: top(all("main p, main h2").find(e => /^(The )?method/i.test(e.textContent))),
        open: open.length, api: top(all(".th-api")[0]), last: top(document.querySelector("#th-reference"))}
    }""")
    assert at["answer"] < at["chart"] < at["method"] and at["chart"] < 720, at
    assert at["open"] == 0 and at["api"] >= at["last"], at


def test_paper_is_told_once(site, server, tab):
    "The paper's page and the page of its run open with the verdicts, and only one of them has the story"
    for page in ("paper", "runs/smollm2"):
        t = opened(tab["light"], f"{server}/{page}.html")
        assert t.locator("table.verdicts").first.bounding_box()["y"] < 720, page
        rule = t.locator("table.verdicts .th-rule summary").first
        rule.focus()
        t.keyboard.press("Enter")
        assert t.locator("table.verdicts .th-rule").first.get_attribute("open") is not None
    paper, run = (re.sub(r"<[^>]+>", " ", (site / f"{p}.html").read_text()) for p in ("paper", "runs/smollm2"))
    said = [s for s in re.split(r"(?<=[.!?])\s+", run[run.find("Can the model do the task?") :]) if len(s) > 60]
    assert len(said) > 60 and sum(s in paper for s in said) < len(said) / 10


def test_terms_show_their_meaning(server, tab):
    "The first use of a term leads to its definition, and shows it to the keyboard"
    t = opened(tab["light"], f"{server}/composition.html")
    term = t.locator("a.th-term[href='glossary.html#term-composition-score']")
    assert term.count() == 1 and len(term.get_attribute("data-said")) > 40
    t.keyboard.press("Tab")
    term.focus()
    assert "attr" not in t.evaluate("getComputedStyle(document.activeElement, '::after').content")
    assert len(t.evaluate("getComputedStyle(document.activeElement, '::after').content")) > 40


def test_cards_and_addresses(site):
    "Every page says its address and its language; the card is a picture, and the formulas have a font"
    for page in PAGES:
        text = (site / page).read_text()
        own = "" if page == "index.html" else page
        assert re.search(rf'<link rel="canonical" href="https://[^"]+/{re.escape(own)}">', text), page
        assert 'property="og:image"' in text and 'name="citation_title"' in text, page
        assert ('<html lang="ja">' in text) == page.endswith("_ja.html"), page
    assert (site / "card.png").read_bytes().startswith(b"\x89PNG")
    assert (site / "math.woff2").stat().st_size < 100_000
    assert "Report an issue" in (site / "svd.html").read_text()


def test_japanese_pages_are_linked_from_home(site):
    home = (site / "index.html").read_text()
    for page in ("home_ja", "own_data_ja", "for_decisions_ja", "for_decisions"):
        assert f'href="{page}.html"' in home[home.find("<main") :], page


# Heads that have an address


def test_head_names_lead_to_the_explorer(server, tab):
    "A head's name on a page of the findings opens the explorer at that head, and a click there changes the address"
    t = opened(tab["light"], f"{server}/one_direction.html")
    t.locator("a[href='explorer.html#smollm2/20.0']").first.click()
    t.wait_for_url("**/explorer.html#smollm2/20.0")
    t.wait_for_function("() => [...document.querySelectorAll('svg text')].some(e => /^20.0: /.test(e.textContent))")
    t.goto(f"{server}/explorer.html#smollm2/99.9")
    t.reload()
    noted = "() => [...document.querySelectorAll('.th-note')].some(e => /no 99.9/.test(e.textContent))"
    t.wait_for_function(noted)


def test_switch_to_dark(server, tab):
    "The switch turns page and charts dark, and the next page keeps it"
    t = opened(tab["light"], f"{server}/channels.html")
    light = t.eval_on_selector(".th-chart", "h => h.querySelector('svg').innerHTML")
    t.click(".quarto-color-scheme-toggle")
    t.wait_for_function("h => document.documentElement.classList.contains('quarto-dark')")
    t.wait_for_function("was => document.querySelector('.th-chart svg')?.innerHTML != was", arg=light)
    opened(t, f"{server}/nulls.html")
    assert t.evaluate("document.documentElement.classList.contains('quarto-dark')")
    t.evaluate("localStorage.clear()")


def test_menus_on_a_telephone(server, tab):
    "The list of chapters and the search box open on a narrow window"
    t = opened(tab["narrow"], f"{server}/core.html")
    t.click(".quarto-btn-toggle")
    t.wait_for_selector("#quarto-sidebar a[href='svd.html']")
    t.click("#quarto-sidebar a[href='svd.html']")
    t.wait_for_url("**/svd.html")
    t.click(".navbar-toggler")
    t.wait_for_selector(".smalldocs-search input")
    assert t.evaluate("document.documentElement.scrollWidth") <= 391


def test_keyboard_reaches_the_content(server, tab):
    "Tab goes from link to link and shows where it is"
    t = opened(tab["light"], f"{server}/core.html")
    seen = []
    for _ in range(12):
        t.keyboard.press("Tab")
        seen.append(asked(t, "focused"))
    assert sum(tag == "A" for tag, _ in seen) >= 6 and all(look != "nonenone" for _, look in seen)
