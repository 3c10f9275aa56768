"A report is one file that asks nobody for anything, hides nothing that failed, and is whole or absent"

import pandas as pd
import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from talking_heads import charts
from talking_heads.base.core import OutputError
from talking_heads.paper.report import to_html


def code(source="1", *outputs, tags=()):
    return new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)} if tags else {})


def shown(**data):
    return new_output("display_data", data=data)


def html(text):
    return shown(**{"text/html": text})


def chart(text="one"):
    df = pd.DataFrame(dict(template=[text], order="ABBA", metric="accuracy", mean=0.9, low=0.8, high=0.95, n=60))
    return charts.mimebundle(charts.by_template(df).to_dict())


@pytest.fixture
def report(tmp_path):
    "Write cells as a notebook, make the report, give its parsed page"

    def make(*cells, **kwargs):
        nbformat.write(new_notebook(cells=list(cells)), tmp_path / "run.ipynb")
        return BeautifulSoup(
            to_html(tmp_path / "run.ipynb", tmp_path / "out" / "run.html", **kwargs).read_text(), "html.parser"
        )

    return make


def test_bundle_comes_once_and_only_with_charts(report):
    page = report(code("a", shown(**chart("one"))), code("b", shown(**chart("two"))))
    assert len(page.select("script#vega")) == 1 and len(page.select(".th-chart")) == 2
    assert "window.vegaEmbed=" in page.select_one("script#vega").string
    assert not report(new_markdown_cell("# No charts")).select("script")


def test_vega_is_there_before_any_chart(report):
    page = str(report(code("a", shown(**chart()))))
    assert page.index('id="vega"') < page.index('class="th-chart"')


def test_nothing_is_fetched(report):
    page = report(
        new_markdown_cell("# A\n\n![map](https://a.b/c.png) and [link](https://a.b)"),
        code(
            "x",
            html(
                '<script src="https://a.b/d.js"></script><link href="https://a.b/e.css">'
                '<iframe src="https://a.b"></iframe>'
            ),
        ),
        code(
            "y",
            html(
                '<style>@import "https://a.b/f.css"; p{background:url(https://a.b/g.png)}</style>'
                '<p style="background:url(//a.b/h.png)">z</p>'
            ),
        ),
        code("z", shown(**chart())),
    )
    assert not page.select("script[src], link, iframe, img[src^=http], object, embed")
    assert not any("url(" in t.get_text() or "@import" in t.get_text() for t in page.select("style"))
    assert "url(" not in page.select_one("p[style]")["style"]
    assert page.select_one("a[href^=https]") and "map, not included" in page.get_text()
    assert "default-src 'none'" in page.select_one("meta[http-equiv]")["content"]


def test_script_inside_a_spec_is_escaped(report):
    page = report(code("a", shown(**chart("</script><h2>broken</h2>"))))
    assert not page.select("h2") and len(page.select("script")) == 2


def test_any_vegalite_output_is_drawn(report):
    spec = chart()["application/vnd.vegalite.v5+json"]
    page = report(code("a", shown(**{"application/vnd.vegalite.v6+json": spec, "text/plain": "<chart>"})))
    assert len(page.select(".th-chart")) == 1


def test_code_is_folded_unless_it_failed(report):
    bad = new_output(
        "error",
        ename="ZeroDivisionError",
        evalue="division by zero",
        traceback=["\x1b[31mZeroDivisionError\x1b[0m: division by zero"],
    )
    page = report(code("good = 1"), code("1/0", bad))
    assert [d.has_attr("open") for d in page.select("details.code")] == [False, True]
    assert "ZeroDivisionError: division by zero" in page.select_one(".output_error").get_text()
    assert not report(code("good = 1"), hide_code=False).select("details")


def test_tags_and_directives(report):
    page = report(
        code("secret = 1", tags=["remove-cell"]),
        code("unseen = 1", html("<b>kept</b>"), tags=["remove-input"]),
        code("#| hide\nhidden = 1"),
        code("#| export\nshown = 1"),
        code("quiet = 1", html("<b>dropped</b>"), tags=["remove-output"]),
    )
    text = page.select_one("main").get_text()
    assert not any(w in text for w in ("secret", "unseen", "hidden", "#|", "dropped"))
    assert "kept" in text and "shown" in text and "quiet" in text


def test_parameters_become_one_table(report):
    page = report(
        code("model = 'gpt2' # which\nn = 240", tags=["parameters"]), code("n = 60", tags=["injected-parameters"])
    )
    rows = [[c.get_text() for c in r.select("th,td")] for r in page.select("table.parameters tr")]
    assert rows == [["model", "'gpt2'"], ["n", "60"]]


def test_progress_is_left_out_and_warnings_stay(report):
    page = report(
        code("a", new_output("stream", name="stderr", text="\r 10%|#  | 1/10 [00:01<00:09]\r")),
        code("b", new_output("stream", name="stderr", text="UserWarning: few prompts")),
    )
    assert "10%|" not in page.get_text() and "few prompts" in page.get_text()


def test_contents_list_every_second_heading_once(report):
    page = report(
        new_markdown_cell("# T"),
        new_markdown_cell("## One `x`"),
        new_markdown_cell("### not me"),
        new_markdown_cell("## Two & more"),
        new_markdown_cell("## Two & more"),
    )
    links = [a["href"][1:] for a in page.select("nav a")]
    assert len(set(links)) == 3 and all(page.find(id=i).name == "h2" for i in links)
    assert [a.get_text() for a in page.select("nav a")] == ["One x", "Two & more", "Two & more"]


def test_title(report):
    assert report(new_markdown_cell("# From inside")).title.string == "From inside"
    page = report(new_markdown_cell("# From inside"), title="Given & <b>")
    assert page.title.string == "Given & <b>" and page.select_one("h1").get_text() == "Given & <b>"
    assert report(new_markdown_cell("no heading")).select_one("h1").get_text() == "run"


def test_tables_scroll_in_their_own_box(report):
    page = report(code("t", html(pd.DataFrame([range(40)]).to_html())))
    assert page.select_one("table").parent["class"] == ["scroll"]


def test_same_bytes_twice(tmp_path, report):
    report(new_markdown_cell("# A"), code("a", shown(**chart())))
    first = (tmp_path / "out" / "run.html").read_bytes()
    to_html(tmp_path / "run.ipynb", tmp_path / "out" / "run.html")
    assert (tmp_path / "out" / "run.html").read_bytes() == first


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        '{"cells":[{"cell_type":"code"}],"metadata":{},"nbformat":4,"nbformat_minor":5}',
        "\udcff",
    ],
)
def test_broken_notebooks_are_reported(tmp_path, text):
    (tmp_path / "bad.ipynb").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(OutputError, match="no readable notebook"):
        to_html(tmp_path / "bad.ipynb", tmp_path / "bad.html")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.ipynb"]


def test_missing_notebook_and_unusable_place(tmp_path, report):
    with pytest.raises(OutputError, match="no notebook at"):
        to_html(tmp_path / "none.ipynb", tmp_path / "x.html")
    report(new_markdown_cell("# A"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"):
        to_html(tmp_path / "run.ipynb", tmp_path / "file" / "x.html")


def test_an_older_report_survives_a_failure(tmp_path):
    (tmp_path / "old.html").write_text("old")
    (tmp_path / "bad.ipynb").write_text("{")
    with pytest.raises(OutputError):
        to_html(tmp_path / "bad.ipynb", tmp_path / "old.html")
    assert (tmp_path / "old.html").read_text() == "old"
