"A chart on a page: the same bytes twice, nothing breaks out of the script, the script is JavaScript and draws"

import json, shutil, subprocess
from importlib.resources import files
from importlib.util import find_spec

import pytest

from talking_heads.base.vega import chart_html, chart_svg, mimebundle, page_inks, spoken, vega_libraries

ROWS = [dict(x=i, y=i % 3) for i in range(6)]
PLACES = dict(x=dict(field="x", type="quantitative"), y=dict(field="y", type="quantitative"))
SPEC = {
    "$schema": "https://vega.github.io/schema/vega-lite/v6.4.1.json",
    "data": dict(values=ROWS),
    "mark": "line",
    "encoding": PLACES,
    "width": "container",
    "height": 80,
    "title": "A title of many words " * 8,
    "description": "Six points.",
    "config": dict(axis=dict(labelColor=page_inks["either"])),
}


def test_bundle_has_three_forms_and_one_script():
    shown = mimebundle(SPEC)
    assert set(shown) == {"application/vnd.vegalite.v5+json", "text/html", "text/plain"}
    assert shown["text/plain"] == spoken(SPEC) == "Six points." and shown["application/vnd.vegalite.v5+json"] is SPEC
    assert shown["text/html"].count("</script>") == 1 and 'role="img"' in shown["text/html"]


def test_same_bytes_twice_and_another_id_for_another_chart():
    "The id depends on the specification and not on the order of its keys"
    name = lambda spec: chart_html(spec).split('"')[1]
    assert chart_html(SPEC) == chart_html(json.loads(json.dumps(SPEC)))
    assert name(SPEC) == name(dict(reversed(SPEC.items()))) != name(SPEC | dict(height=90))


@pytest.mark.parametrize(
    "text", ["</script><img src=x onerror=alert(1)>", "<!--", "a & b", "</SCRIPT >", 'quote " and \u2028']
)
def test_script_cannot_be_broken_out_of(text):
    html = chart_html(dict(description=text, title="<!--", data=dict(values=[dict(text=text)])))
    assert (
        html.lower().count("<script") == html.lower().count("</script") == 1
        and "<img" not in html
        and "<!--" not in html
    )
    values = html.split("showChart({\n")[1].split("\n})\n})()</script>")[0]
    spec = next(o for o in values.split(",\n") if o.strip().startswith("spec: "))
    assert json.loads(spec.strip().removeprefix("spec: "))["description"] == text


def test_pinned_libraries_match_the_bundled_ones():
    import vl_convert

    ours = [u.split("@")[1].split("/")[0] for u in vega_libraries]
    assert ours[0] == vl_convert.get_vega_version() and ours[2] == vl_convert.get_vega_embed_version()
    assert ours[1].rsplit(".", 1)[0] in vl_convert.get_vegalite_versions()


def test_picture_has_its_words():
    svg = chart_svg(SPEC)
    assert svg.startswith('<svg role="img" aria-label="Six points."') and "<path" in svg


def test_script_is_a_file_whose_comments_stay_at_home():
    "The page carries every line of code of the file, and no line that is a comment"
    text = (files("talking_heads") / "assets" / "charts.js").read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 120 and "</script" not in text and "`${" not in text
    code = [o for o in text.splitlines() if o.strip() and not o.strip().startswith("//")]
    html = chart_html(SPEC)
    assert "\n".join(code) in html and "// Draws a chart" in text and "// Draws a chart" not in html


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
def test_script_is_javascript(tmp_path):
    script = chart_html(SPEC).split("<script>")[1].split("</script>")[0]
    (tmp_path / "a.js").write_text(script, encoding="utf-8")
    assert subprocess.run(["node", "--check", tmp_path / "a.js"], capture_output=True).returncode == 0


def opened(chrome, page, head="", **kw):
    "A page with the chart, and what the page complains about"
    (page / "a.html").write_text(f"<!doctype html><body>{head}{chart_html(SPEC, [])}</body>", encoding="utf-8")
    tab = chrome.new_page(**kw)
    said = []
    tab.on("pageerror", lambda e: said.append(str(e)))
    tab.goto((page / "a.html").as_uri())
    return tab, said


@pytest.fixture(scope="module")
def vega():
    "The libraries as a script element"
    import vl_convert

    return f"<script>(() => {{{vl_convert.javascript_bundle()}}})()</script>"


def test_it_draws_in_the_colours_and_the_width_of_the_page(chrome, vega, tmp_path):
    "It draws again when the page turns dark or narrow, and a long title gets more lines where there is less room"
    tab, said = opened(chrome, tmp_path, vega, viewport=dict(width=1000, height=700))
    drawn = "ink => document.querySelector('.th-chart svg')?.outerHTML.includes(ink)"
    lines = "() => document.querySelectorAll('.role-title tspan').length"
    tab.wait_for_function(drawn, arg=page_inks["light"])
    wide = tab.evaluate(lines)
    assert not tab.evaluate(drawn, page_inks["either"])
    tab.evaluate("document.body.style.background = 'rgb(20, 20, 20)'")
    tab.wait_for_function(drawn, arg=page_inks["dark"])
    tab.set_viewport_size(dict(width=380, height=700))
    tab.wait_for_function("was => document.querySelectorAll('.role-title tspan').length > was", arg=wide)
    assert tab.evaluate("(h => h.scrollWidth - h.clientWidth)(document.querySelector('.th-chart'))") <= 0 and said == []
    tab.close()


def test_it_says_in_words_what_it_cannot_draw(chrome, tmp_path):
    tab, said = opened(chrome, tmp_path)
    tab.wait_for_function(
        "document.querySelector('.th-view').textContent == 'The chart could not be drawn here. Six points.'"
    )
    tab.close()
