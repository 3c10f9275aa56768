"Charts are valid, say what they show, give the same bytes twice, and refuse tables they cannot draw"

import json, re, subprocess, sys, xml.dom.minidom
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import pytest

from talking_heads import charts
from talking_heads.base.core import OutputError, TalkingHeadsError
from talking_heads.base.vega import chart_svg, mimebundle


def heads():
    "A map of 30 layers by 9 heads for two classes, one with negative scores"
    rows = [(l, h, f"{l}.{h}", c) for c in ("mover", "inhibition") for l in range(30) for h in range(9)]
    df = pd.DataFrame(rows, columns="layer head name cls".split())
    df["called"] = df.name.isin(["23.0", "23.1"]) & (df.cls == "mover") | (df.name == "20.0") & (df.cls == "inhibition")
    df["score"] = np.where(df.called, 0.5, 0.01) * np.where(df.cls == "mover", 1, -1)
    return df.assign(low=df.score - 0.02, high=df.score + 0.02)


def votes():
    "Two movers, four roles"
    df = pd.DataFrame(
        [(h, r, m) for h in ("23.0", "23.1") for r, m in zip(("IO", "S1", "S2", "other"), (0.6, 0.1, 0.1, 0.2))],
        columns="name role mean".split(),
    )
    return df.assign(low=df["mean"] - 0.05, high=df["mean"] + 0.05, n=240)


def wordings(metric="accuracy"):
    "Two templates, two orders"
    df = pd.DataFrame(
        [(t, o, metric, m) for t, m in (("one", 0.9), ("two", 0.5)) for o in ("ABBA", "BABA")],
        columns="template order metric mean".split(),
    )
    return df.assign(low=df["mean"] - 0.1, high=df["mean"] + 0.1, n=30)


def lists():
    "Accuracies by N for two templates and both measures"
    means = dict(zip((2, 3, 4, 5, 6, 8, 10), (1, 0.95, 0.80, 0.56, 0.44, 0.34, 0.23)))
    rows = [
        (n, t, m, s, v, 1 / n if m == "among the items" else 0.0)
        for n, v in means.items()
        for t, s in (("things", "train"), ("market", "held-out"))
        for m in ("among the items", "over the vocabulary")
    ]
    df = pd.DataFrame(rows, columns="n_items template measure split mean chance".split())
    return df.assign(low=(df["mean"] - 0.06).clip(0), high=(df["mean"] + 0.06).clip(0, 1), n=240)


def places():
    "Accuracy by N and place, the first place never above chance"
    df = pd.DataFrame(
        [(n, p, 1 / n if p == 1 else 0.7) for n in (2, 3, 5) for p in range(1, n + 1)],
        columns="n_items position mean".split(),
    )
    return df.assign(low=df["mean"] - 0.1, high=df["mean"] + 0.1, n=60, chance=1 / df.n_items)


cases = {
    "head_map": heads,
    "attention_by_role": votes,
    "by_template": wordings,
    "accuracy_by_n": lists,
    "position_map": places,
}
every = pytest.mark.parametrize("name", cases)


def draw(name, **kwargs):
    return getattr(charts, name)(cases[name](), **kwargs)


@every
def test_spec_is_valid_and_carries_its_data(name):
    spec = draw(name, title="A finding", subtitle="over 240 prompts").to_dict(validate=True)
    assert spec["$schema"].startswith("https://vega.github.io/schema/vega-lite/")
    assert spec["datasets"] and '"url"' not in json.dumps(spec)
    assert "".join(spec["title"]["text"]) == "A finding"


@every
def test_same_bytes_twice(name):
    a, b = (mimebundle(draw(name, title="x").to_dict()) for _ in range(2))
    assert json.dumps(a) == json.dumps(b)


@every
def test_description_has_numbers(name):
    said = draw(name).to_dict()["description"]
    assert any(c.isdigit() for c in said) and said.endswith(".") and "nan" not in said


@every
def test_interval_is_used(name):
    text = draw(name).to_json()
    assert '"low"' in text and '"high"' in text


@every
def test_draws_without_warnings_or_network(name, capfd):
    import vl_convert

    svg = vl_convert.vegalite_to_svg(draw(name).to_dict(), allowed_base_urls=[], show_warnings=True)
    assert "<path" in svg and "WARN" not in capfd.readouterr().err


@every
def test_missing_columns_are_named(name):
    with pytest.raises(charts.ChartError, match=f"^{name} needs the columns .*low"):
        getattr(charts, name)(cases[name]().drop(columns="low"))


@every
def test_empty_table_is_refused(name):
    with pytest.raises(charts.ChartError, match=f"{name} .*without rows"):
        getattr(charts, name)(cases[name]().iloc[:0])


@every
def test_input_is_left_alone(name):
    df = cases[name]()
    getattr(charts, name)(df)
    pd.testing.assert_frame_equal(df, cases[name]())


@every
def test_unknown_intervals_do_not_break(name):
    df = cases[name]().assign(low=np.nan, high=np.nan)
    assert "nan" not in getattr(charts, name)(df).to_dict()["description"].lower()


def test_chart_error_is_ours_and_a_value_error():
    assert issubclass(charts.ChartError, TalkingHeadsError) and issubclass(charts.ChartError, ValueError)


def test_each_class_has_its_own_scale():
    panels = charts.head_map(heads()).to_dict()["concat"]
    domains = [p["layer"][0]["encoding"]["color"]["scale"]["domain"] for p in panels]
    assert domains == [[0, 0.5], [-0.5, 0]]


def test_called_heads_are_named_and_many_are_counted():
    df = heads()
    df.loc[(df.cls == "mover") & (df.layer > 20), "called"] = True
    first, second = charts.head_map(df).to_dict()["concat"][0]["title"]["subtitle"]
    assert first.startswith("23.0 23.1") and "+" in second


def test_both_measures_can_be_chosen():
    params = {p["name"]: p for p in charts.accuracy_by_n(lists()).to_dict()["params"]}
    assert params["measure_pick"]["bind"]["options"] == ["among the items", "over the vocabulary"]
    assert params["template_pick"]["bind"] == "legend" and params["template_pick"]["views"] == ["curves"]


def test_cells_at_chance_are_in_brackets():
    rows = charts.position_map(places()).data["values"]
    assert [r["cell"] for r in rows[:2]] == ["(50)", "70"]


def test_two_metrics_stand_below_each_other():
    df = pd.concat([wordings(), wordings("logit difference").assign(high=6.0)])
    assert len(charts.by_template(df).vconcat) == 2


def test_enable_sets_renderer_and_theme():
    before = alt.renderers.active, alt.theme.active
    try:
        charts.enable()
        bundle = alt.Chart(pd.DataFrame({"x": [1]})).mark_point().encode(x="x")._repr_mimebundle_()
        assert charts.ink in bundle["text/html"] and "vegaEmbed" in bundle["text/html"]
    finally:
        alt.renderers.enable(before[0])
        alt.theme.enable(before[1])


def test_import_leaves_altair_alone():
    "Importing the charts, and making one, changes neither Altair's renderer nor its theme; `enable` does"
    code = """if True:
        import altair as alt, pandas as pd
        def state():
            known = sorted(alt.renderers.names()), sorted(alt.theme.names())
            return alt.renderers.active, alt.theme.active, *known

        before = state()
        from talking_heads import charts
        df = pd.DataFrame(dict(component=[0], name=["1.0.0"], fall=[.1], low=[0.], high=[.2], n=9))
        charts.removal_bars(df).to_dict()
        assert state() == before
        charts.enable()
        print(alt.renderers.active, alt.theme.active)"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert out.stdout.split() == ["talking_heads", "talking_heads"], out.stderr


def test_extensions_have_what_they_need():
    "A chart made with the public functions alone is checked, carries its rows and says what it shows"
    df = pd.DataFrame(dict(name=["a", "b", "c"], mean=[0.123456, 0.5, np.nan], odd=[True, False, True]))
    rows = charts.checked_table(df, "name mean", "my_chart")
    assert rows.name.tolist() == ["a", "b"] and df["mean"].isna().sum() == 1
    for inline, value in ((charts.inline_data, 0.1235), (charts.inline_csv, 0.123)):
        base = (
            alt.Chart(inline(rows))
            .mark_bar()
            .encode(x="mean:Q", y="name:N", tooltip=charts.tooltip(rows, "name mean nowhere"))
        )
        spec = charts.finish_chart(base, "Title", "below", "Two  bars,\nof which b is longer.").to_dict(validate=True)
        assert spec["description"] == "Two bars, of which b is longer." and spec["title"]["subtitle"] == ["below"]
        assert [t["field"] for t in spec["encoding"]["tooltip"]] == ["name", "mean"] and str(value) in json.dumps(spec)
        assert spec["config"]["axis"] == charts.theme()["config"]["axis"]
    with pytest.raises(charts.ChartError, match="my_chart needs the columns other"):
        charts.checked_table(df, "name other", "my_chart")
    assert len(charts.checked_table(df, "name", "my_chart")) == 3  # no column of values is asked for


def test_save_chart(tmp_path):
    df = places()
    paths = charts.save_chart(charts.position_map(df), tmp_path / "new", "places", df)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["places.json", "places.parquet", "places.svg"]
    alt.Chart.from_dict(json.loads(paths["spec"].read_text()))
    pd.testing.assert_frame_equal(pd.read_parquet(paths["data"]), df)
    root = xml.dom.minidom.parse(str(paths["svg"])).documentElement
    assert root.tagName == "svg" and "place" in root.getAttribute("aria-label")


def test_save_chart_same_bytes_twice(tmp_path):
    df = wordings()
    a, b = (charts.save_chart(charts.by_template(df), tmp_path / d, "t", df) for d in "ab")
    assert all(a[k].read_bytes() == b[k].read_bytes() for k in a)


@pytest.mark.parametrize("name", ["", "../x", "a/b"])
def test_save_chart_refuses_names_that_leave_the_folder(tmp_path, name):
    with pytest.raises(OutputError, match="file name"):
        charts.save_chart(draw("by_template"), tmp_path, name, wordings())
    assert not list(tmp_path.iterdir())


def test_save_chart_reports_an_unusable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"):
        charts.save_chart(draw("by_template"), tmp_path / "file", "x", wordings())


def test_import_needs_no_model_code():
    heavy = "('torch', 'transformers', 'transformer_lens')"
    code = f"import sys, talking_heads.charts; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert out.stdout.strip() == "[]", out.stderr


def test_ranks_without_marked_heads_have_an_extent():
    "A layer without rows has no extent, and a browser would draw the chart infinitely tall"
    df = pd.DataFrame(
        dict(
            src=[f"0.0.{i}" for i in range(9)],
            score=np.linspace(0.2, 0.1, 9),
            z=np.linspace(9, 1, 9),
            rank=range(1, 10),
        )
    )
    spec = charts.component_ranks(df, {}).to_dict()
    assert len(spec["layer"]) == 1 and all(d.strip().count("\n") == 9 for d in spec["datasets"].values())
    assert "infinity" not in chart_svg(spec).lower()


def test_removal_bars_draw_and_speak():
    df = pd.DataFrame(
        dict(
            component=range(4),
            name=[f"1.0.{i}" for i in range(4)],
            fall=[0.2, 0.1, 0.0, -0.1],
            low=[0.1, 0.0, -0.1, -0.2],
            high=[0.3, 0.2, 0.1, 0.0],
            n=30,
        )
    )
    chart = charts.removal_bars(df, title="t")
    assert "1.0.0" in chart.description and "4 components" in chart.description and len(chart.to_dict()["layer"]) == 2
    assert "<svg" in chart_svg(chart.to_dict())
    with pytest.raises(charts.ChartError):
        charts.removal_bars(df.drop(columns="low"))


def writers():
    "All components of six heads before one reader"
    rng = np.random.default_rng(1)
    df = pd.DataFrame(
        [
            dict(src=f"{l}.{h}.{c}", score=rng.uniform(0.02, 0.1), share=0.25)
            for l in range(2)
            for h in range(3)
            for c in range(4)
        ]
    )
    return df.assign(
        z=lambda d: (d.score - d.score.median()) / 0.02, rank=lambda d: d.score.rank(ascending=False).astype(int)
    )


def explorer():
    "Four small tables about six heads"
    names = [(l, h, f"{l}.{h}") for l in range(2) for h in range(3)]
    heads = pd.DataFrame(
        [
            dict(
                layer=l,
                head=h,
                name=n,
                cls="mover" if n == "1.1" else "",
                component=n + ".0",
                reader="2.0",
                score=0.1,
                z=float(l + h),
            )
            for l, h, n in names
        ]
    )
    parts = pd.DataFrame(
        [
            dict(name=n, component=f"{n}.{c}", reader="2.0", score=0.1, z=3.0 - c, rank=c + 1)
            for _, _, n in names
            for c in range(3)
        ]
    )
    tokens = pd.DataFrame([dict(name=n, pos=i, token=f"{i} w", attention=0.25) for _, _, n in names for i in range(4)])
    return heads, parts, parts, tokens


def table_of_lists():
    "Two lengths, two wordings, both measures, without and with an edit"
    return pd.DataFrame(
        [
            dict(
                n_items=n,
                template=t,
                split="train",
                position=p,
                measure=m,
                edit=e,
                mean=0.5 + 0.25 * (e == "on"),
                low=0.3,
                high=0.9,
                n=12,
                chance=1 / n,
            )
            for n in (3, 5)
            for t in "ab"
            for p in range(1, n + 1)
            for m in ("among the items", "over the vocabulary")
            for e in ("off", "on")
        ]
    )


def cube():
    "A subspace cut in three places, along its third coordinate"
    df = pd.DataFrame(
        [
            dict(x0=a, x1=b, x2=c, place=p + 1, share=0.9 if p == c else 0.05)
            for a in range(3)
            for b in range(3)
            for c in range(3)
            for p in range(3)
        ]
    )
    return df.assign(most=df.share > 0.5)


linked = {
    "heads_and_components": lambda: charts.heads_and_components(writers(), {"1.1": "inhibition"}, title="t"),
    "head_explorer": lambda: charts.head_explorer(*explorer(), title="t"),
    "list_explorer": lambda: charts.list_explorer(table_of_lists(), title="t"),
    "subspace_slices": lambda: charts.subspace_slices(cube(), "abc", title="t"),
}


@pytest.mark.parametrize("name", linked)
def test_explorers_draw_speak_and_repeat(name, capfd):
    import vl_convert

    a, b = linked[name](), linked[name]()
    spec = a.to_dict(validate=True)
    assert json.dumps(spec) == json.dumps(b.to_dict()) and '"url"' not in json.dumps(spec)
    assert (
        any(c.isdigit() for c in spec["description"])
        and "nan" not in spec["description"]
        and spec["description"].endswith(".")
    )
    assert (
        "<path" in vl_convert.vegalite_to_svg(spec, allowed_base_urls=[], show_warnings=True)
        and "WARN" not in capfd.readouterr().err
    )


def test_whole_heads_from_parts():
    "The whole head's score is the root of the mean of its components' squares, weighted by share"
    df = writers()
    d = charts._whole_heads(df.assign(head=charts._head_of(df.src))).set_index("head")
    for h, g in df.groupby(charts._head_of(df.src)):
        assert (
            np.isclose(d.score[h], np.sqrt((g.share * g.score**2).sum()))
            and d.loudest[h] == g.src[g.score.idxmax()]
            and d.part_rank[h] == g["rank"].min()
        )
    assert sorted(d["rank"]) == list(range(1, 7)) and d.score.idxmax() == d["rank"].idxmin()


def test_slices_show_the_place_named_most_often():
    d = charts._slices(cube())
    assert (d.place == d.slice).all() and len(d) == 27


@pytest.mark.parametrize(
    "name, frames, lack",
    [
        ("heads_and_components", lambda d: (d.drop(columns="share"), {}), "share"),
        ("list_explorer", lambda d: (d.drop(columns="edit"),), "edit"),
        ("subspace_slices", lambda d: (d.drop(columns="most"), "abc"), "most"),
    ],
)
def test_explorers_name_what_is_missing(name, frames, lack):
    data = {"heads_and_components": writers, "list_explorer": table_of_lists, "subspace_slices": cube}[name]()
    with pytest.raises(charts.ChartError, match=f"^{name} needs the columns .*{lack}"):
        getattr(charts, name)(*frames(data))


def test_explorer_starts_with_a_known_head():
    "A known head is shown first, and the loudest of all where none is known"
    heads, *rest = explorer()
    assert charts.head_explorer(heads, *rest).description.endswith("First shown: 1.1.")
    assert charts.head_explorer(heads.assign(cls=""), *rest).description.endswith("First shown: 1.2.")


def test_readable_tables():
    "Whole numbers whole, floats rounded, nothing where nothing is, headers in words, no row numbers"
    rows = pd.DataFrame(dict(n=[200.0, None], gain=[-0.0004, 0.12345], head=["20.0", None], called=[True, False]))
    text = charts.readable(rows, dict(n="prompts"), digits=dict(gain=2)).data
    cells = re.findall(r"<t[dh]>(.*?)</t[dh]>", text)
    assert cells == ["prompts", "gain", "head", "called", "200", "0.00", "20.0", "yes", "", "0.12", "", "no"]
    kept = charts.readable(rows.head(1).set_index("head")[["n"]]).data
    assert re.findall(r"<t[dh]>(.*?)</t[dh]>", kept) == ["head", "n", "20.0", "200"]
    assert "&lt;b&gt;" in charts.readable(pd.DataFrame(dict(x=["<b>"]))).data
