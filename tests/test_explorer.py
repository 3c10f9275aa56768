"The explorer's tables against slower ways to the same numbers"

import json

import pandas as pd
import pytest
import torch

from talking_heads.base.vega import chart_html
from talking_heads.composition import compose
from talking_heads.data import ioi, laundry_list
from talking_heads.evaluation import prompt_scores
from talking_heads.site.explorer import *
from talking_heads.hooks import load_model, readout, task_args
from talking_heads.interventions import active_edits, component_edit
from talking_heads.svd import attention_weights


@pytest.fixture(scope="module")
def toy():
    return load_model("toy", device="cpu")


@pytest.fixture(scope="module")
def scores():
    return compose(attention_weights("toy"), "Q")


def test_frames_hold_the_loudest(scores):
    """Of every head: the components with the largest z over all readers,
    and the readers with the largest z over its components, by brute force"""
    parts, readers = writer_frames(scores, keep=3)
    every = pd.concat([scores.ranking(f"{l}.{h}") for l in (1, 2) for h in range(8)])
    every["name"] = every.src.str.rsplit(".", n=1).str[0]
    assert set(parts.name) == set(every.name)
    for frame, key in ((parts, "src"), (readers, "dst")):
        for name, mine in frame.groupby("name"):
            best = every[every.name == name].groupby(key).z.max().nlargest(3)
            assert mine.z.to_numpy() == pytest.approx(best.to_numpy(), rel=1e-4) and len(mine) == len(best)
    full = every.set_index(["src", "dst"])
    for r in pd.concat([parts, readers]).to_dict("records"):
        row = full.loc[(r["component"], r["reader"])]
        assert r["rank"] == row["rank"] and r["score"] == pytest.approx(row.score, abs=1e-6)


def test_looks_are_attention(toy):
    "Attention of a head sums to one, and at a role's position it is what `readout` reads"
    p = ioi(**task_args(toy), n=2, seed=5)
    seen, r = looks(toy, p[0]), readout(toy, p[:1])
    assert seen.groupby("name").attention.sum().to_numpy() == pytest.approx(1, abs=1e-4) and len(seen) == 24 * len(
        p[0].tokens
    )
    for i, role in enumerate(("IO", "S1", "S2")):
        at = seen[seen.pos == p[0].roles[role]].set_index("name").attention
        for l in range(3):
            for h in range(8):
                assert at[f"{l}.{h}"] == pytest.approx(float(r.attention[0, l, h, i]), abs=1e-5)


def test_explorer_knows_the_circuit(toy, scores):
    "In the toy the heads that were built in are the loudest"
    chart = explore_heads(toy, scores, ioi(**task_args(toy), n=1)[0], {"1.0": "inhibition", "1.1": "inhibition"})
    assert "1.1 (inhibition), 1.1.0" in chart.description and "Map of 16 heads" in chart.description


@pytest.fixture(scope="module")
def page(toy, scores, tmp_path_factory):
    "A page with the explorer of the toy, whose heads have addresses"
    import vl_convert

    folder = tmp_path_factory.mktemp("explorer")
    (folder / "vega.js").write_text(f"(() => {{{vl_convert.javascript_bundle()}}})()")
    chart = explore_heads(toy, scores, ioi(**task_args(toy), n=1)[0], {"1.1": "inhibition"}, address="toy")
    (folder / "a.html").write_text(f'<!DOCTYPE html><meta charset="utf-8">{chart_html(chart.to_dict(), ["vega.js"])}')
    return (folder / "a.html").as_uri()


def panels(tab):
    "Titles of the panels"
    tab.wait_for_selector("svg")
    every = "[...document.querySelectorAll('svg text')].map(e => e.textContent)"
    return tab.evaluate(f"() => {every}.filter(x => /: (its loudest|who hears|where it looks)/.test(x))")


def test_every_state_has_an_address(chrome, page):
    "An address chooses a head, a click changes it, and one that is not there falls back with a word"
    tab, seen = chrome.new_page(viewport=dict(width=1000, height=900)), []
    tab.on("pageerror", lambda e: seen.append(str(e)))
    tab.goto(f"{page}#toy/0.3")
    assert len(panels(tab)) == 3 and all(x.startswith("0.3: ") for x in panels(tab))
    ticks = "() => [...document.querySelectorAll('svg .role-axis-label text')].map(e => e.textContent).join()"
    quiet = tab.evaluate(ticks)
    tab.evaluate("location.hash = '#toy/1.1'")
    tab.wait_for_function("() => [...document.querySelectorAll('svg text')].some(e => /^1.1: /.test(e.textContent))")
    labels = lambda x: [o for o in x.split(",") if "." not in o]  # names of components differ, scales do not
    assert labels(tab.evaluate(ticks))[:20] == labels(quiet)[:20]
    squares = tab.query_selector_all("svg .mark-rect.role-mark path")
    squares[0].click()
    tab.wait_for_function("() => location.hash != '#toy/1.1'")
    assert panels(tab)[0].startswith(tab.evaluate("location.hash").split("/")[1] + ": ")
    tab.evaluate("location.hash = '#toy/9.9'")
    tab.wait_for_function("() => /no 9.9/.test(document.querySelector('.th-note')?.textContent)")
    assert all(x.startswith("1.1: ") for x in panels(tab)) and seen == []


@pytest.fixture(scope="module")
def two(toy, tmp_path_factory):
    "A page with two explorers in one place, the first of them in three modes and without a sentence"
    import vl_convert

    folder = tmp_path_factory.mktemp("two")
    (folder / "vega.js").write_text(f"(() => {{{vl_convert.javascript_bundle()}}})()")
    w, p = attention_weights("toy"), ioi(**task_args(toy), n=1)[0]
    modes = {m: compose(w, m) for m in "QKV"}
    charts = [
        explore_heads(None, modes, None, {"1.1": "inhibition"}, address="one", label="One"),
        explore_heads(toy, modes, p, {"1.1": "inhibition", "2.0": "mover"}, address="two", label="Two"),
    ]
    body = "".join(chart_html(c.to_dict(), ["vega.js"]) for c in charts)
    style = "<style>[hidden] { display: none !important }</style>"
    (folder / "a.html").write_text(f'<!DOCTYPE html><meta charset="utf-8">{style}{body}')
    return (folder / "a.html").as_uri()


NOTED = "() => [...document.querySelectorAll('.th-note')].some(e => /{}/.test(e.textContent))"
SHOWN = "() => [...document.querySelectorAll('.th-chart:not([hidden]) svg text')].map(e => e.textContent)"


def test_models_and_modes(chrome, two):
    "One model is shown at a time; its address, its button and the keyboard choose it, its mode and its head"
    tab, seen = chrome.new_page(viewport=dict(width=1000, height=900)), []
    tab.on("pageerror", lambda e: seen.append(str(e)))
    tab.goto(f"{two}#two/1.1/K")
    tab.wait_for_selector(".th-chart:not([hidden]) svg")
    pressed = "() => document.querySelector('.th-models [aria-pressed=true]').textContent"
    assert tab.evaluate(pressed) == "Two" and tab.locator(".th-chart:not([hidden])").count() == 1
    assert any(x == "1.1: where it looks from the last word" for x in tab.evaluate(SHOWN))
    in_k = tab.evaluate(SHOWN)
    tab.locator(".th-chart:not([hidden]) input[value=Q]").focus()
    tab.keyboard.press("Space")
    tab.wait_for_function("() => location.hash == '#two/1.1'")
    assert tab.evaluate(SHOWN) != in_k
    tab.locator(".th-chart:not([hidden]) select").select_option("0.3")
    tab.wait_for_function("() => location.hash == '#two/0.3'")
    assert "0.3: who hears it" in tab.evaluate(SHOWN)
    tab.locator(".th-models button").first.focus()
    tab.keyboard.press("Enter")
    tab.wait_for_function("() => /^#one/.test(location.hash)")
    tab.wait_for_selector(".th-chart:not([hidden]) svg")
    assert tab.evaluate(pressed) == "One" and not any("where it looks" in x for x in tab.evaluate(SHOWN))
    tab.evaluate("location.hash = '#three/1.1'")
    tab.wait_for_function(NOTED.format("no model three"))
    tab.evaluate("location.hash = '#two/1.1/X'")
    tab.wait_for_function(NOTED.format("no mode X"))
    assert seen == []


def test_arcs_are_as_wide_as_attention(toy):
    "A word's arc in the chart is drawn from the share that `looks` read; both modes hold the rows of their own scores"
    w, p = attention_weights("toy"), ioi(**task_args(toy), n=1)[0]
    spec = explore_heads(toy, {m: compose(w, m) for m in "QK"}, p, {}).to_dict()
    arcs = spec["vconcat"][1]["layer"][0]
    assert arcs["encoding"]["size"]["field"] == "attention" and arcs["encoding"]["size"]["scale"]["domain"] == [0, 1]
    data = {k: v for k, v in spec["datasets"].items()} if "datasets" in spec else {}
    texts = [v if isinstance(v, str) else json.dumps(v) for v in data.values()]
    rows = pd.concat([pd.read_csv(pd.io.common.StringIO(t), dtype=str) for t in texts if "mode" in t[:200]])
    assert set(rows["mode"]) == {"Q", "K"}


def test_study_is_what_a_run_by_hand_says(toy, tmp_path):
    """Rows are accuracies of whole-weight runs on the same prompts;
    what was done is kept, other settings start again; the model is left as it was"""
    edit = component_edit(toy, ["1.0.0", "1.0.1", "1.1.0", "1.1.1"])
    before = [p.clone() for p in toy.original_model.parameters()]
    path = lists_study(toy, edit, sizes=(3,), per_place=3, path=tmp_path / "t.json")
    rows = pd.DataFrame(json.loads(path.read_text())["rows"])
    p = laundry_list(**task_args(toy), n_items=3, n=9, template="bag", seed=3000)
    edit.apply(toy)
    by_hand = prompt_scores(readout(toy, p, ())).groupby("position").top1.mean()
    edit.undo(toy)
    mine = rows[(rows.template == "bag") & (rows.edit == "on") & (rows.measure == "over the vocabulary")].set_index(
        "position"
    )["mean"]
    assert mine.to_dict() == by_hand.to_dict()
    assert all(torch.equal(a, b) for a, b in zip(before, toy.original_model.parameters())) and not active_edits(toy)
    stamp = path.read_bytes()
    assert lists_study(toy, edit, sizes=(3,), per_place=3, path=path).read_bytes() == stamp
    lists_study(toy, component_edit(toy, "1.0.0"), sizes=(2,), per_place=1, path=path)
    assert {r["n_items"] for r in json.loads(path.read_text())["rows"]} == {2}


def test_stored_table_is_whole():
    "Every length, wording, place and measure, without and with the edit, with its provenance"
    t = stored_lists()
    rows = pd.DataFrame(t["rows"])
    assert len(t["sha256"]) == 64 and len(t["edit"]["components"]["name"]) == 64
    assert (
        rows.groupby(["n_items", "template", "measure", "edit"])
        .position.nunique()
        .reset_index()
        .eval("position==n_items")
    ).all()
    assert (
        len(rows) == (3 + 5 + 8) * 5 * 2 * 2
        and (rows.n == t["per_place"]).all()
        and (rows.low <= rows["mean"]).all()
        and (rows["mean"] <= rows.high).all()
    )
