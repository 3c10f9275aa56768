"""Runs side by side: nothing compared in silence, every section in the table,
differences found by brute force, files that are ours only"""

import json
import subprocess
import sys
from copy import deepcopy
from itertools import combinations

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from hypothesis import given, settings, strategies as st

import made_results as made
from talking_heads.paper.comparison import *
from talking_heads.base.core import *
from talking_heads.base.pages import page as write_page


@pytest.fixture
def put(tmp_path):
    "Store results as a run folder"

    def f(name, results, **key):
        write_json(results, tmp_path / name / "results.json")
        if key:
            write_json(key, tmp_path / name / "tables" / "key.json")
        return tmp_path / name

    return f


def other(**kw):
    "A run of another model, made alike"
    r = made.complete("invented-other")
    r["provenance"]["sha256"] = "ee" * 32
    return r | kw


@pytest.fixture
def two(put):
    return put("a", made.complete()), put("b", other())


def short(r):
    "Two sections of a run: fewer charts to draw"
    return made.without(
        r, *(s for s in r if s not in ("schema_version", "model", "provenance", "verdicts", "ioi", "forecast"))
    )


@pytest.fixture
def brief_two(put):
    return put("a", short(made.complete())), put("b", short(other()))


# What must agree


def changed(r, path, value):
    "`r` with one field set"
    r = deepcopy(r)
    at = r
    for k in path[:-1]:
        at = at[k]
    at[path[-1]] = value
    return r


wrong = {
    "setting how": (["provenance", "settings", "how"], "full"),
    "setting n_prompts": (["provenance", "settings", "n_prompts"], 230),
    "setting list_lengths": (["provenance", "settings", "list_lengths"], [2, 3]),
    "IOI prompts": (["ioi", "n"], 230),
    "list template": (["laundry_list", "template"], "boxes"),
    "prompts of 5 items": (["laundry_list", "by_n", "5", "n"], 100),
    "talking_heads": (["provenance", "versions", "talking_heads"], "0.2.0"),
    "seeds of the model": (["provenance", "seed"], 1),
    "rule of removal": (["verdicts", 2, "rule"], "another rule"),
    "setting new": (["provenance", "settings", "new"], 1),
}


@pytest.mark.parametrize("field", wrong)
def test_runs_made_differently_are_refused_or_marked(put, field, tmp_path):
    keep = short if field == "setting how" else lambda r: r
    runs = [put("a", keep(made.complete())), put("c", keep(changed(other(), *wrong[field])))]
    with pytest.raises(ComparisonError, match=field) as e:
        compare_runs(runs)
    assert "--anyway" in str(e.value)
    c = compare_runs(runs, anyway=True)
    assert not c.comparable and field in set(c.differences.field) and repr(c).startswith("NOT COMPARABLE")
    if field != "setting how":
        return  # the files once
    c.save(tmp_path / "out")
    page = BeautifulSoup((tmp_path / "out" / "comparison.html").read_text(), "html.parser")
    assert "not comparable" in page.select_one(".mark").get_text() and field in page.select_one(".mark").get_text()
    assert (
        not pd.read_csv(tmp_path / "out" / "comparison.csv").comparable.any()
        and not json.loads((tmp_path / "out" / "comparison.json").read_text())["comparable"]
    )
    assert all("NOT COMPARABLE" in p.read_text() for p in (tmp_path / "out" / "charts").glob("*.json"))


def test_runs_made_alike_stand_side_by_side(two):
    c = compare_runs(two)
    assert c.comparable and not len(c.differences)
    assert not BeautifulSoup(comparison_html(c), "html.parser").select(".mark")


def test_old_and_new_schema_are_not_mixed_in_silence(put, two):
    old = put("old", made.version_1())
    assert (
        read_run(old).version == 1
        and read_run(old).results["schema_version"] == 2
        and read_run(old).results["verdicts"] == []
    )
    c = compare_runs([old, two[1]])
    assert c.comparable and any("different versions of results.json" in s for s in c.explained)
    again = made.version_1()
    again["provenance"]["seed"] = 1
    assert compare_runs([old, put("old2", again)]).comparable


def test_code_is_compared_where_it_is_known(put):
    a, b = (
        put("a", made.complete(), code="1" * 64, notebook="2" * 64),
        put("b", other(), code="3" * 64, notebook="2" * 64),
    )
    with pytest.raises(ComparisonError, match="package code"):
        compare_runs([a, b])
    b = put("b", other(), code="1" * 64, notebook="2" * 64)
    assert compare_runs([a, b]).comparable and not any("known by its version" in n for n in compare_runs([a, b]).notes)
    assert any("known by its version only" in n for n in compare_runs([a, put("c", other())]).notes)


def test_sets_of_seeds(put, two):
    at = lambda r, s: changed(r, ["provenance", "seed"], s)
    a1, b1 = put("a1", at(made.complete(), 1)), put("b1", at(other(), 1))
    assert compare_runs([two[0], a1]).comparable and compare_runs([*two, a1, b1]).comparable
    with pytest.raises(ComparisonError, match="seeds of the model"):
        compare_runs([*two, a1])


def test_bos_may_be_a_models_habit_but_not_change_under_it(put, two):
    with_bos = lambda r: changed(r, ["provenance", "bos"], True)
    c = compare_runs([two[0], put("c", with_bos(other()))])
    assert c.comparable and any(n.startswith("BOS differs") for n in c.notes)
    with pytest.raises(ComparisonError, match="BOS"):
        compare_runs([two[0], put("d", with_bos(made.complete()))])


def test_the_same_run_twice_is_said(put, two):
    copy = put("copy", made.complete())
    said = compare_runs([two[0], copy, two[1]]).notes
    assert (
        any("same model with the same seed" in n and "identical" in n for n in said)
        and sum("same model" in n for n in said) == 1
    )
    noisy = put("noisy", changed(made.complete(), ["ioi", "accuracy"], 0.9))
    assert any("They differ in ioi" in n for n in compare_runs([two[0], noisy]).notes)
    renamed = put("renamed", made.complete("another-name"))  # other name, same weights
    assert any("same model" in n for n in compare_runs([two[0], renamed]).notes)


def test_missing_sections_are_said(two, put):
    w = (
        made.weights_only()
    )  # no prompts, no settings, other `processing`, another notebook: none of it concerns the part that both have
    w["provenance"]["sha256"] = "ff" * 32
    c = compare_runs([*two, put("w", w, notebook="5" * 64)])
    assert c.comparable and any(n.startswith("Not run in invented-weights: ioi, heads") for n in c.notes)


# Differences that are explained and leave the questions the same


def shared(c, section):
    return set(c.frame[c.frame.section == section].groupby("measure").run.nunique())


def test_different_processing_is_explained_and_shares_no_row(put, two, th_compare, tmp_path):
    raw = changed(made.weights_only(), ["weights", "processing"], "raw") | dict(model="invented-raw")
    raw["provenance"]["sha256"] = "ff" * 32
    c = compare_runs([two[0], put("raw", raw)])
    assert c.comparable and shared(c, "weights") == {1} and not len(apart(c.frame))
    names = set(c.frame[c.frame.section == "weights"].measure)
    assert {f"average precision of components, Q ({p} weights)" for p in ("folded", "raw")} <= names
    text = BeautifulSoup(comparison_html(c), "html.parser").select_one(".told").get_text()
    assert "invented-complete: folded; invented-raw: raw" in text and "verdicts on weights are not comparable" in text
    both = other(weights=made.weights() | dict(beside=dict(raw["weights"])))
    c = compare_runs([put("both", both), put("raw", raw)])
    assert shared(c, "weights") == {1, 2}  # rows of one processing stand side by side
    alike = compare_runs([two[0], two[1]])
    assert shared(alike, "weights") == {2} and alike.explained == []
    r = th_compare(two[0], tmp_path / "raw", "--out", tmp_path / "out")
    assert r.returncode == 0 and "differently processed weights" in r.stdout
    assert str(tmp_path) not in (tmp_path / "out" / "comparison.json").read_text()


def test_components_of_other_weights_share_no_row(put, two):
    r = other()
    r["provenance"]["components"] = "folded, as W_O writes them"  # the same as `folded` in the older run
    assert compare_runs([two[0], put("r", r)]).explained == []
    r["provenance"]["components"] = "raw"
    c = compare_runs([two[0], put("r", r)])
    assert c.comparable and shared(c, "removal") == shared(c, "steering") == {1} and shared(c, "ioi") == {2}
    assert "These parts rest on differently processed weights" in c.explained[0] and "Removal" in c.explained[0]


@pytest.mark.parametrize(
    "path,value,says",
    [
        (["provenance", "dtype"], "bfloat16", "Number formats differ"),
        (["provenance", "processing"], "folded", "differently processed weights"),
    ],
)
def test_how_numbers_were_computed_is_explained(put, two, path, value, says):
    c = compare_runs([two[0], put("c", changed(other(), path, value))])
    assert c.comparable and says in c.explained[0]
    assert says in BeautifulSoup(comparison_html(c), "html.parser").select_one(".told").get_text()


def test_a_refusal_says_why_it_matters(put, two):
    full = put("full", changed(other(), ["provenance", "settings", "how"], "full"))
    with pytest.raises(ComparisonError, match="quick runs use fewer prompts"):
        compare_runs([two[0], full])
    page = BeautifulSoup(comparison_html(compare_runs([two[0], full], anyway=True)), "html.parser")
    assert "wider intervals" in page.select_one(".mark").get_text()


def test_claims_that_could_not_be_tested_have_a_column_of_their_own(two):
    t = verdict_totals(compare_runs(two).verdicts).set_index("run").loc["invented-complete"]
    assert t.to_dict() == {"replicates": 3, "partly": 1, "does not replicate": 1, "could not be tested": 1}


def test_no_path_names_a_model(put):
    path = made.complete("/home/somebody/models/hf")
    c = compare_runs([put("p", path), put("q", other())])
    assert c.runs[0].name == "model-ab12ab12" and "/home" not in comparison_html(c)


def test_other_known_pairs_are_said(two, put):
    c = compare_runs([two[0], put("c", changed(other(), ["weights", "board_edges"], "literature"))])
    assert c.comparable and any("known pairs come from differs" in n for n in c.notes)


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 1), st.sampled_from(["x/run", "y/run", "z"])),
        min_size=2,
        max_size=6,
    )
)
@settings(deadline=None)
def test_names_tell_runs_apart(parts):
    runs = [Run(m, made.minimal() | dict(provenance=made.provenance(seed=s)), 2, {}, p) for m, s, p in parts]
    names = [r.name for r in named(list(runs))]
    assert len(set(names)) == len(names) and all(n.startswith(r.name) for n, r in zip(names, runs))


# The table


def test_every_section_is_in_the_table():
    df = results_frame(made.complete())
    r = made.complete()
    assert list(dict.fromkeys(df.section)) == [
        s
        for s in (
            "ioi",
            "heads",
            "laundry_list",
            "removal",
            "steering",
            "weights",
            "signal",
            "crowding",
            "lifting",
            "audit",
            "forecast",
        )
    ]
    assert not df.duplicated(["section", "measure"]).any()
    row = lambda s, m: df[(df.section == s) & (df.measure == m)].iloc[0]
    acc = row("ioi", "accuracy")
    assert (acc.value, acc.low, acc.high, acc.n) == (0.961, 0.927, 0.982, 231)
    assert row("forecast", "AUROC from both").high == r["forecast"]["both_ci"][1] and row("audit", "kl").value == 0.0113
    assert row("lifting", "change, learned gains, held-out, N=8").low == r["lifting"]["learned"]["lists"][2]["low"]
    assert row("crowding", "skill, N=8").value == 0.139 and row("weights", "components over whole heads, Q").low == 0.05
    assert (
        row("removal", "inhibition score, removed everywhere").value == 0.06
        and not df.measure.str.contains("7.2.0", regex=False).any()
    )
    assert "induction" not in set(df[df.section == "audit"].measure)  # untested: no value, so no row


def numbers(x):
    return (
        [x]
        if isinstance(x, float)
        else [y for v in (x.values() if isinstance(x, dict) else x if isinstance(x, list) else []) for y in numbers(v)]
    )


@pytest.mark.parametrize("section", ["ioi", "removal", "steering", "signal", "forecast"])
def test_no_number_of_a_section_is_lost(section):
    df = results_frame(made.complete())
    have = set(df[["value", "low", "high"]].to_numpy().ravel())
    lost = set(numbers(made.without(made.complete()[section], "worst", "everywhere"))) - have
    assert lost <= ({0.8, 0.9} if section == "forecast" else set())  # those are in the names of measures


@pytest.mark.parametrize("name", made.every)
def test_every_kind_of_run_can_be_compared(name, put, tmp_path):
    r = made.every[name]()
    b = changed(r, ["provenance", "seed"], 1)
    c = compare_runs([put("a", r), put("b", b)])
    assert (
        c.comparable
        and len(c.frame) == 2 * len(results_frame(r))
        and "<h1>Comparison of 2 runs</h1>" in comparison_html(c)
    )
    if len(c.frame.section.unique()) > 2:
        return  # files: of the smaller ones; writing many charts takes seconds
    assert [p.name for p in c.save(tmp_path / "out")[:4]] == [
        "comparison.html",
        "comparison.csv",
        "comparison.parquet",
        "comparison.json",
    ]
    back = pd.read_parquet(tmp_path / "out" / "comparison.parquet")
    assert (
        back.columns.tolist() == "run section measure value low high n comparable".split()
        and len(back) == len(c.frame)
        and (back.comparable.all() or not len(back))
    )


# Differences

triple = st.tuples(st.floats(0, 1), st.floats(0, 0.3), st.floats(0, 0.3))


@given(st.lists(triple, min_size=2, max_size=5))
@settings(deadline=None)
def test_apart_is_what_brute_force_finds(values):
    df = pd.DataFrame(
        [
            dict(run=f"r{i}", section="s", measure="m", value=v, low=v - a, high=v + b, n=5)
            for i, (v, a, b) in enumerate(values)
        ]
    )
    want = {
        frozenset((f"r{i}", f"r{j}"))
        for (i, x), (j, y) in combinations(enumerate(values), 2)
        if x[0] - x[1] > y[0] + y[2] or y[0] - y[1] > x[0] + x[2]
    }
    got = apart(df)
    assert {frozenset(p) for p in zip(got.higher, got.lower)} == want and pairs_compared(df) == len(values) * (
        len(values) - 1
    ) // 2
    at = df.set_index("run").value
    assert all(at[h] > at[l] for h, l in zip(got.higher, got.lower))


def test_order_of_the_runs_does_not_matter(two):
    key = lambda c: sorted(map(tuple, apart(c.frame).drop(columns=["by", "clear"]).to_numpy()))
    assert key(compare_runs(two)) == key(compare_runs(two[::-1]))


def test_verdicts_that_differ_are_explained(put, two):
    r = other()
    r["verdicts"][2] |= dict(verdict="does not replicate", reason="another component took <as much>")
    r["verdicts"][5] |= dict(verdict="replicates", reason="found here")
    c = compare_runs([two[0], put("r", r)])
    d = verdict_differences(c.verdicts)
    assert dict(zip(d.claim, d.kind)) == {"removal": "different verdicts", "gpt2": "tested in some runs only"}
    page = BeautifulSoup(comparison_html(c), "html.parser")
    assert (
        len(page.select("tr.differs")) == 2
        and "another component took <as much>" in page.get_text()
        and "Runs differ on 2 of 6 claims" in page.get_text()
    )
    assert not len(verdict_differences(compare_runs(two).verdicts))


def test_title_states_the_finding(put, two):
    r = other()
    r["laundry_list"]["by_n"]["5"] |= dict(accuracy=0.2, ci=[0.15, 0.25])
    chart, _ = section_charts(compare_runs([two[0], put("r", r)]))["laundry_list"]
    title = " ".join(chart.title.text)
    assert (
        "1 of 4 measures differ" in title
        and "N=5, invented-complete 0.56, invented-other 0.2" in title
        and "N=5 20%" in chart.description
    )
    assert "No measure differs" in " ".join(section_charts(compare_runs(two))["ioi"][0].title.text)


def test_many_runs_keep_different_looks():
    from talking_heads.paper import comparison

    names = [f"r{i}" for i in range(48)]
    colour, shape = (x["scale"].to_dict()["range"] for x in comparison._looks(names))
    assert len(set(zip(colour, shape))) == 48


# Files


def test_page_is_offline(put, two, tmp_path):
    odd = other(model="<script>alert(1)</script>")
    c = compare_runs([two[0], put("odd", odd)])
    page = BeautifulSoup(write_page(comparison_html(c), tmp_path / "c.html", "A comparison").read_text(), "html.parser")
    assert not page.select("script[src], link, iframe, img[src^=http]") and not [
        s for s in page.select("script") if (s.string or "").startswith("alert")
    ]
    assert "<script>alert(1)</script>" in page.get_text() and len(page.select(".th-chart")) == 11


def test_folders_of_others_are_left_alone(brief_two, tmp_path):
    c = compare_runs(brief_two)
    with pytest.raises(OutputError, match="holds a run"):
        c.save(brief_two[0])
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "comparison.csv").write_text("mine")
    with pytest.raises(OutputError, match="did not make"):
        c.save(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "comparison.csv").read_text() == "mine" and len(
        list((tmp_path / "theirs").iterdir())
    ) == 1
    out = tmp_path / "out"
    (out / "charts").mkdir(parents=True)
    (out / "charts" / "mine.svg").write_text("mine")
    first = c.save(out)
    less = compare_runs([replaced(r) for r in c.runs])
    less.save(out)
    assert (
        (out / "charts" / "mine.svg").read_text() == "mine"
        and not (out / "charts" / "forecast.svg").exists()
        and (out / "charts" / "forecast.svg") in first
    )


def replaced(r):
    return Run(r.name, made.without(r.results, "forecast"), r.version, r.code, r.path)


def test_unreadable_runs(put, two, tmp_path):
    with pytest.raises(OutputError, match="Run th_paper first"):
        compare_runs([two[0], tmp_path / "none"])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "results.json").write_text("{")
    with pytest.raises(OutputError, match="not valid JSON"):
        compare_runs([two[0], tmp_path / "bad"])
    (tmp_path / "bad" / "results.json").write_text('{"schema_version": 99}')
    with pytest.raises(OutputError, match="version 99"):
        compare_runs([two[0], tmp_path / "bad"])
    with pytest.raises(ComparisonError, match="at least two"):
        compare_runs([two[0]])


@pytest.fixture(scope="module")
def th_compare(tmp_path_factory):
    "The command, as its console script runs it"
    script = tmp_path_factory.mktemp("bin") / "th_compare"
    script.write_text(
        "import sys\nfrom talking_heads.commands import th_compare\nif __name__ == '__main__': sys.exit(th_compare())\n"
    )
    return lambda *args: subprocess.run(
        [sys.executable, str(script), *map(str, args)], capture_output=True, text=True, timeout=100
    )


def test_command(th_compare, put, brief_two, tmp_path):
    r = th_compare(*brief_two, "--out", tmp_path / "out")
    assert (
        r.returncode == 0
        and "2 runs (invented-complete, invented-other)" in r.stdout
        and (tmp_path / "out" / "comparison.html").is_file()
    )
    full = put("full", changed(short(other()), ["provenance", "settings", "how"], "full"))
    r = th_compare(brief_two[0], full, "--out", tmp_path / "out2")
    assert (
        r.returncode == 1
        and "setting how" in r.stderr
        and "Traceback" not in r.stderr
        and not (tmp_path / "out2").exists()
    )
    r = th_compare(brief_two[0], full, "--out", tmp_path / "out2", "--anyway")
    assert (
        r.returncode == 0
        and r.stdout.startswith("NOT COMPARABLE")
        and (tmp_path / "out2" / "comparison.json").is_file()
    )
