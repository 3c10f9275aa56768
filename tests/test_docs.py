"The site: what is read from the notebooks, what is written, and how every page behaves in a real browser"
import ast, json, re, shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from talking_heads.docs import *
from talking_heads import docs

ROOT = Path(__file__).resolve().parents[1]
for need in ("smalldocs","latex2mathml","vl_convert"):
    if not find_spec(need): pytest.skip(f"{need} is not installed; `make setup` installs it", allow_module_level=True)

# What the source says of a symbol, against what Python says of it

def test_symbols_agree_with_inspect():
    "Names, defaults and docstrings read from the text are those of the imported functions"
    import inspect
    from talking_heads import core, runs
    for mod in (core, runs):
        found = {s.name:s for s in symbols(Path(mod.__file__).read_text())}
        public = [o for n,o in vars(mod).items() if inspect.isfunction(o) and o.__module__==mod.__name__ and not n.startswith("_")]
        for f in public:
            f = inspect.unwrap(f)
            sig = inspect.signature(f)
            assert [p[0].lstrip("*") for p in found[f.__name__].params] == list(sig.parameters)
            assert found[f.__name__].doc == inspect.getdoc(f)
            for (name,_,default,_),p in zip(found[f.__name__].params, sig.parameters.values()):
                assert (default=="") == (p.default is inspect.Parameter.empty), (f, name)
        classes = {n for n,o in vars(mod).items() if inspect.isclass(o) and o.__module__==mod.__name__ and not n.startswith("_")}
        assert classes <= found.keys() and {f.__name__ for f in public} <= found.keys()

@pytest.mark.parametrize("source, params, returns, raises", [
    ("def f(a:int, # one\n      b=2, # two\n     )->str: # three\n    'd'", (("a","int","","one"),("b","","2","two")), ("str","three"), ()),
    ("def f(a, b): # back\n    'd'", (("a","","",""),("b","","","")), ("","back"), ()),
    ("def f(*xs, # many\n      k=1, # key\n      **kw # rest\n     ):\n    'd'", (("*xs","","","many"),("k","","1","key"),("**kw","","","rest")), ("",""), ()),
    ("def f(a,b, # both\n     ):\n    'd'", (("a","","",""),("b","","","both")), ("",""), ()),
    ("def f(o:Param('where',str)=None,\n      q:Param('quiet',store_true)=False):\n    'd'",
     (("o","str","None","where"),("q","flag","False","quiet")), ("",""), ()),
    ("def f(a):\n    'finds; raises `HeadError` if not'\n    raise ModelError('x')", (("a","","",""),), ("",""), ("HeadError","ModelError")),
])
def test_parameters(source, params, returns, raises):
    s, = symbols(source)
    assert (s.params,s.returns,s.raises) == (params,returns,raises)

def test_classes_and_patches():
    a,run,b = symbols('@dataclass\nclass A:\n    "One"\n    x:int # width\n    y:str="n" # name\n    def run(self, n=1): "Go"\n    def _no(self): "No"\n'
                      '@patch\ndef more(self:A, k): "More"')
    assert (a.kind,a.call,a.params) == ("class","A(x, y='n')",(("x","int","","width"),("y","str","'n'","name")))
    assert (run.name,run.call,run.anchor) == ("A.run","A.run(n=1)","a.run")
    assert (b.name,b.kind,[p[0] for p in b.params]) == ("A.more","method",["k"])

@pytest.mark.parametrize("text, want", [
    ("see `f`", "see [`f`](a.html#f)"), ("see `f(2)` and `g`", "see [`f(2)`](a.html#f) and `g`"), ("[`f`](x.md)", "[`f`](x.md)"),
    ("``f``", "``f``"), ("~~~\n`f`\n~~~", "~~~\n`f`\n~~~"), ("## `f`", "## `f`"), ("````\n```\n`f`\n````\n`f`", "````\n```\n`f`\n````\n[`f`](a.html#f)"),
])
def test_links_on_symbols(text, want): assert linked(text, {"f":"a.html#f"}) == want

# A small project that can be broken

SETTINGS = (ROOT/"settings.ini").read_text()
SITE = """project: {type: website}
website:
  title: tiny
  sidebar: {style: docked, contents: [{section: Start, contents: [index.ipynb, 01_one.ipynb, later.ipynb]}]}
format: {html: {theme: {light: default, dark: darkly}, toc: true}}
"""

def nb(*cells):
    "A notebook: markdown as text, code as (source, outputs)"
    made = [dict(cell_type="markdown",metadata={},source=c) if isinstance(c,str) else
            dict(cell_type="code",metadata={},source=c[0],outputs=list(c[1:]),execution_count=None) for c in cells]
    return json.dumps(dict(cells=made,metadata={},nbformat=4,nbformat_minor=5))

@pytest.fixture
def tiny(tmp_path):
    "A checkout with two notebooks, one of which exports"
    for d in ("nbs","talking_heads"): (tmp_path/d).mkdir()
    (tmp_path/"settings.ini").write_text(SETTINGS)
    (tmp_path/"nbs"/"_quarto.yml").write_text(SITE)
    (tmp_path/"index.ipynb").write_text(nb("# tiny\n\n> Small","It has `go` and a formula, $s^2$."))
    (tmp_path/"nbs"/"index.ipynb").symlink_to("../index.ipynb")
    source = 'def go(n:int, # steps\n      )->int: # where it stands\n    "Walk"\n    raise HeadError("no")'
    (tmp_path/"nbs"/"01_one.ipynb").write_text(nb("# one\n\n> First",("#| default_exp one",),("#| hide\nsecret = 1",),(f"#| export\n{source}",),"## Go\n\nBack to [home](index.ipynb)."))
    (tmp_path/"talking_heads"/"one.py").write_text(source)
    (tmp_path/"talking_heads"/"_modidx.py").write_text("d = " + repr(dict(settings={},syms={"talking_heads.one":{"talking_heads.one.go":("one.html#go","x")}})))
    return tmp_path

def test_small_site(tiny):
    out = build_docs(tiny, tiny/"_docs")
    one,index = (out/"one.html").read_text(),(out/"index.html").read_text()
    assert 'href="one.html#go"' in index and "<msup><mi>s</mi>" in index and "katex" not in index
    assert 'id="go"' in one and 'id="about-go"' in one and 'href="index.html"' in one
    assert "steps" in one and "where it stands" in one and "HeadError" in one and "talking_heads/one.py#L1" in one
    assert "secret" not in one and "default_exp" not in one and "later" not in index
    assert link_faults(out) == []

def test_forgotten_notebook_is_in_the_sidebar(tiny):
    (tiny/"nbs"/"new_room.ipynb").write_text(nb("# A new room"))
    out = build_docs(tiny, tiny/"_docs")
    assert 'href="new_room.html"' in (out/"one.html").read_text()

def test_runs_are_pages(tiny):
    (tiny/"nbs"/"runs").mkdir()
    (tiny/"nbs"/"runs"/"toy.ipynb").write_text(nb("# A run","It calls `go`."))
    out = build_docs(tiny, tiny/"_docs")
    assert 'href="../one.html#go"' in (out/"runs"/"toy.html").read_text()

def test_broken_link_is_told(tiny):
    (tiny/"nbs"/"01_one.ipynb").write_text(nb("# one","[there](nowhere.ipynb) and [here](index.ipynb#missing)"))
    with pytest.raises(DocsError, match="(?s)nowhere.*|missing"): build_docs(tiny, tiny/"_docs")

def test_outside_request_is_told(tiny):
    (tiny/"nbs"/"01_one.ipynb").write_text(nb("# one",'<img src="https://example.org/a.png" alt="a">'))
    with pytest.raises(DocsError, match="example.org.*another site"): build_docs(tiny, tiny/"_docs")

def test_failed_build_keeps_the_last_site(tiny):
    out = build_docs(tiny, tiny/"_docs")
    before = (out/"one.html").read_bytes()
    (tiny/"nbs"/"01_one.ipynb").write_text("{ not a notebook")
    with pytest.raises(DocsError, match="01_one.ipynb"): build_docs(tiny, tiny/"_docs")
    assert (out/"one.html").read_bytes() == before

def test_refuses_a_folder_that_is_no_site(tiny):
    (tiny/"mine").mkdir()
    (tiny/"mine"/"thesis.txt").write_text("years of work")
    with pytest.raises(DocsError, match="no site"): build_docs(tiny, tiny/"mine")
    assert (tiny/"mine"/"thesis.txt").read_text() == "years of work"

def test_no_checkout(tmp_path):
    with pytest.raises(DocsError, match="no checkout"): build_docs(tmp_path)

def test_sources_are_left_alone(tiny):
    stamp = lambda: {p.relative_to(tiny):p.read_bytes() for p in sorted(tiny.rglob("*")) if p.is_file() and "_docs" not in p.parts}
    before = stamp()
    build_docs(tiny, tiny/"_docs")
    assert stamp() == before

def test_no_quarto(tiny, monkeypatch):
    monkeypatch.setattr(docs.shutil, "which", lambda name: None)
    with pytest.raises(DocsError, match="Quarto is not installed"): build_docs(tiny, tiny/"_docs", quarto=True)

def test_preview_serves_and_counts(tiny):
    from urllib.request import urlopen
    from urllib.error import URLError
    out = build_docs(tiny, tiny/"_docs", reload=True)
    server,handler = docs._serve(out, 0)
    try:
        at = f"http://127.0.0.1:{server.server_address[1]}"
        assert b"__smalldocs__/version" in urlopen(f"{at}/one.html").read()
        before = int(urlopen(f"{at}/__smalldocs__/version").read())
        handler.version += 1
        assert int(urlopen(f"{at}/__smalldocs__/version").read()) == before+1
    finally: server.shutdown()

# The whole site, as files

@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The site of this checkout; building it checks every link and anchor"
    return build_docs(ROOT, tmp_path_factory.mktemp("site")/"_docs")

PAGES = sorted([page_name(p)+".html" for p in (ROOT/"nbs").glob("[!_.]*.ipynb")] + ["changelog.html","citation.html"] +
               [p.relative_to(ROOT/"nbs").with_suffix(".html").as_posix() for p in (ROOT/"nbs"/"runs").rglob("*.ipynb")])

def test_every_notebook_is_a_page(site):
    assert sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html")) == PAGES
    home = (site/"index.html").read_text()
    assert [p for p in PAGES if f'href="{p}"' not in home and not p.startswith("index")] == []

def test_links_and_anchors(site): assert link_faults(site) == []

def test_every_symbol_has_its_place(site):
    index = symbol_index(docs._modidx(ROOT))
    ids = {p:set(re.findall(r'\bid="([^"]+)"',(site/p).read_text())) for p in PAGES}
    missing = {a for a in index.values() if a.split("#")[1] not in ids.get(a.split("#")[0],())}
    assert len(index) > 200 and not missing

def test_no_raw_formula_is_left(site):
    for p in PAGES:
        text = re.sub(r"<(script|pre|code)\b.*?</\1>","",(site/p).read_text(),flags=re.S)
        assert not re.search(r"\\[(\[]|\$\$|\\(frac|sum|lVert)",text), p

def weight(page):
    "Bytes that a browser reads for a page: itself, what it loads, and Vega where it draws"
    parsed = docs._Page(page.read_text())
    files = {(page.parent/a).resolve() for a in parsed.loads if not a.startswith("data:")}
    vega = page.parent/docs.vega_file
    return page.stat().st_size + sum(f.stat().st_size for f in files) + ("th-chart" in page.read_text())*vega.stat().st_size

def test_no_page_is_heavy(site):
    sizes = {p:weight(site/p) for p in PAGES if "/" not in p}
    assert max(sizes.values()) < 3_000_000, max(sizes,key=sizes.get)

def test_vega_is_there_once(site):
    big = [p for p in site.rglob("*.js") if p.stat().st_size>600_000 and p.name!="search.js"]
    assert big == [site/docs.vega_file]
    assert not any("cdn.jsdelivr" in re.sub(r"<pre.*?</pre>","",(site/p).read_text(),flags=re.S) for p in PAGES)

# Every page in a browser

@pytest.fixture(scope="session")
def chrome():
    "One browser for all pages"
    try:
        with browser() as b: yield b
    except DocsError as e: pytest.skip(str(e))

@pytest.fixture(scope="session")
def server(site):
    "Address of the site on a plain file server"
    import functools, http.server, threading
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    s = http.server.ThreadingHTTPServer(("127.0.0.1",0), functools.partial(Quiet,directory=str(site)))
    threading.Thread(target=s.serve_forever,daemon=True).start()
    yield f"http://127.0.0.1:{s.server_address[1]}"
    s.shutdown()

@pytest.fixture(scope="session")
def tab(chrome):
    "One tab for each view; `seen` collects what it complains about and what it asks for"
    tabs = {}
    for view,(width,scheme) in views.items():
        t = tabs[view] = chrome.new_page(viewport=dict(width=width,height=900),color_scheme=scheme)
        t.seen = []
        t.on("console", lambda m,t=t: m.type in ("error","warning") and t.seen.append(f"{m.type}: {m.text}"))
        t.on("pageerror", lambda e,t=t: t.seen.append(f"exception: {e}"))
        t.on("request", lambda r,t=t: r.url.startswith(("http://127.0.0.1","file:","data:","blob:")) or t.seen.append(f"asks for {r.url}"))
        t.on("requestfailed", lambda r,t=t: t.seen.append(f"failed: {r.url}"))
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
    if not spec: pytest.skip("axe_playwright_python is not installed; `make setup` installs it")
    return (Path(spec.origin).parent/"axe.min.js").read_text()

AXE = "() => axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.map(v => [v.impact, v.id, v.nodes.map(n => n.html.slice(0, 150) + ' ' + (n.any[0]?.message || ''))]))"

def serious(tab, axe):
    "What axe calls serious or critical"
    tab.evaluate(axe)
    return [(i,rule,nodes[:4]) for i,rule,nodes in tab.evaluate(AXE) if i in ("serious","critical")]

CHARTS = """() => [...document.querySelectorAll('.th-chart')].map(h => ({id: h.id,
  marks: h.querySelectorAll('svg [class*="mark-"] path, svg [class*="mark-"] text, svg [class*="mark-"] line, canvas').length,
  said: h.querySelector('[role=img]')?.getAttribute('aria-label')?.length || 0, wide: h.scrollWidth - h.clientWidth}))"""

@pytest.mark.parametrize("page", PAGES)
def test_page_light(server, tab, axe, page):
    "On a server, light: no complaint, nothing from outside, charts with marks and words, no serious fault"
    t = opened(tab["light"], f"{server}/{page}")
    assert [c for c in t.evaluate(CHARTS) if not (c["marks"] and c["said"]>20)] == []
    assert serious(t, axe) == [] and t.seen == []

@pytest.mark.parametrize("page", PAGES)
def test_page_dark(site, tab, axe, page):
    "From a folder, dark: the same, and text that can be read"
    t = opened(tab["dark"], (site/page).as_uri())
    assert t.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(c => c < 70)")
    assert serious(t, axe) == [] and t.seen == []

@pytest.mark.parametrize("page", PAGES)
def test_page_narrow(site, tab, page):
    "On a telephone's width: nothing sticks out of the page, and no chart out of its place"
    t = opened(tab["narrow"], (site/page).as_uri())
    assert t.evaluate("document.documentElement.scrollWidth") <= 391
    assert [c for c in t.evaluate(CHARTS) if c["wide"]>1] == [] and t.seen == []
