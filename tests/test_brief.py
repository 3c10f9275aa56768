"""The brief: every number comes from the run, every gap is named,
advice follows from the rules, both languages say the same, one sheet of paper"""

import re
import subprocess
import sys
from collections import Counter
from copy import deepcopy
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from hypothesis import given, settings, strategies as st

import made_results as made
from talking_heads.paper import brief as room
from talking_heads.paper.brief import *
from talking_heads.base.core import *
from talking_heads.base.short_page import *
from talking_heads.paper.sections import check_results

pairs = [(name, lang) for name in made.every for lang in languages]
heading = lambda key, lang: room._words[key][languages.index(lang)]
text = lambda results, part, lang="en": next(t for h, t, _ in brief(results, lang).parts if h == heading(part, lang))


def leaves(x):
    "All numbers below `x`; keys of list lengths and places count, and so does the length of a list"
    if isinstance(x, bool):
        return []
    if isinstance(x, dict):
        return [float(k) for k in x if str(k).isdigit()] + [y for v in x.values() for y in leaves(v)]
    if isinstance(x, list):
        return [float(len(x))] + [y for v in x for y in leaves(v)]
    return [float(x)] if isinstance(x, (int, float)) else []


def is_from(token, pool):
    "Is this number in `pool`, as it is or as a percentage, within its rounding?"
    off = 0.5 * 10 ** -len(token.partition(".")[2]) + 1e-9
    return any(abs(float(token) - s * abs(x)) <= off for x in pool for s in (1, 100))


sources = dict(
    does=["ioi", "laundry_list", "lifting"],
    fails=["laundry_list", "forecast"],
    ahead=["forecast"],
    inside=["heads", "removal"],
    edit=["lifting"],
    cost=["audit"],
    undo=[],
    sure=["verdicts"],
)  # what each part may take its numbers from


@pytest.mark.parametrize("name,lang", pairs)
def test_every_number_comes_from_its_section(name, lang):
    results = made.every[name]()
    for (key, may), (_, said, table) in zip(sources.items(), brief(results, lang).parts):
        pool = leaves([results[s] for s in may if s in results]) + [0.95, results["provenance"]["seed"]]
        if key == "fails" and "forecast" not in results:
            pool += [0.8, 0.9]  # the two levels that the package reads off the curve
        if key == "sure":
            pool += Counter(v["verdict"] for v in results.get("verdicts", [])).values()
        if key == "cost":
            pool.append(sum(v["verdict"] != "untested" for v in results.get("audit", {}).get("verdicts", [])))
        if key == "inside":
            said = said.replace(results.get("removal", {}).get("component", "?"), "")
        if key == "inside" and "heads" not in results:
            said = re.sub(r"\d+\.\d+(\.\d+)?", "", said)  # names from the weights, tested below
        numbers = re.findall(r"\d+(?:\.\d+)?", " ".join([said, *(c for row in table for c in row)]))
        assert [x for x in numbers if not is_from(x, pool)] == [], key


def test_sentences_hold_no_number_of_their_own():
    for key, both in room._words.items():
        assert not [s for s in both if re.search(r"[0-9０-９]", s)], key
        assert len({frozenset(re.findall(r"{(\w*)}", s)) for s in both}) == 1, key


@given(st.floats(0.02, 0.98), st.floats(0.02, 0.98), st.integers(50, 99_999))
@settings(max_examples=30, deadline=None)
def test_numbers_follow_the_run(a, b, n):
    "What a run says anew, the page says anew"
    r = made.complete()
    r["ioi"] |= dict(accuracy=a, n=n)
    r["laundry_list"]["by_n"]["8"] |= dict(top1=a)
    r["laundry_list"]["by_n"]["5"]["accuracy"] = b
    r["forecast"]["worst"][0]["failure"] = b
    for lang in languages:
        assert {percent(a), str(n)} <= set(re.findall(r"\d+(?:\.\d+)?%?", text(r, "does", lang)))
        assert (
            percent(b) in text(r, "fails", lang)
            and percent(b) in brief(r, lang).parts[0][2][1]
            and percent(a) == brief(r, lang).parts[0][2][3][4]
        )


def test_main_sentences():
    r = made.complete()
    assert "96% of cases (95% interval 93% to 98%, 231 sentences)" in text(r, "does")
    assert "正答率は96%です（95%信頼区間：93%〜98%、231文）" in text(r, "does", "ja")
    assert "at least 80% right: 3 items" in text(r, "fails") and "place 6: 91%" in text(r, "fails")
    assert "79% of pairs" in text(r, "ahead") and "71%: no clear difference" in text(r, "ahead")
    assert "62 numbers" in text(
        r, "edit"
    ) and "With 8 items: 26% without, 49% with it (+23 points; 95% interval +17 to +29 points, 148 prompts)" in text(
        r, "edit"
    )
    assert (
        "all 6 limits" in text(r, "cost")
        and "at 62%" in text(r, "cost")
        and "with certainty: the basic task" in text(r, "cost")
    )
    assert "6 in all" in text(r, "sure")
    assert "3 replicated, 1 replicated in part, 1 did not replicate." in text(r, "sure")
    assert "1 more could not be tested here, which is evidence neither for nor against" in text(r, "sure")
    assert "th_edit --undo" in text(r, "undo") and "`edits`" in text(r, "undo")


# What was not run


@pytest.mark.parametrize("section", room._sections)
@pytest.mark.parametrize("lang", languages)
def test_what_was_not_run_is_said(section, lang):
    name = heading(f"s_{section}", lang)
    whole, less = text(made.complete(), "sure", lang), text(made.without(made.complete(), section), "sure", lang)
    said = heading("not_run", lang).split("{")[0]
    assert said not in whole and re.search(re.escape(said) + re.escape(name) + r"[.。]", less)


@pytest.mark.parametrize("lang", languages)
def test_parts_of_an_empty_run(lang):
    r = made.minimal()
    wants = dict(
        does="task_not",
        fails="lists_not",
        ahead="ahead_not",
        inside="inside_not",
        edit="edit_not",
        cost="cost_none",
        undo="undo_none",
        sure="claims_not",
    )
    for part, key in wants.items():
        assert heading(key, lang) in text(r, part, lang)
    assert brief(r, lang).parts[0][2] == []


def test_weights_alone():
    r = made.weights_only()
    assert "unit (attention head) 9.1 listens most to 7.2.0" in text(
        r, "inside"
    ) and "Only the weights were read" in text(r, "inside")
    assert (
        "not run" in brief(r).short
        and "No edit was trained" in brief(r).short
        and "English sentences" not in text(r, "sure")
        and "ntervals" not in text(r, "sure")
    )


def test_no_heads_called():
    said = text(made.no_heads(), "inside")
    assert "No unit" in said and "Removing" not in said


def test_version_1_is_enough():
    b = brief(made.version_1())
    assert (
        "judged none" in text(made.version_1(), "sure")
        and "80% right: 3 items" in text(made.version_1(), "fails")
        and b.parts[0][2]
    )


def test_scaling_alone_is_no_edit():
    r = made.quick()
    assert "Only scaling" in text(r, "edit") and "before all other words by +2 points" in text(r, "edit")
    assert (
        "No edit was trained" in text(r, "cost")
        and "nothing to roll back" in text(r, "undo")
        and "No edit was trained" in brief(r).short
    )
    assert re.search(r"Not run: .*\bedit\b.*audit", text(r, "sure"))


def test_the_reach_needs_the_lower_end():
    r = made.without(made.complete(), "forecast")
    r["laundry_list"]["by_n"]["3"]["ci"] = [0.79, 0.93]
    assert "80% right: 2 items" in text(r, "fails")


def test_the_table_and_the_reach_agree():
    "Read back from a stored run, whose keys are sorted as text; the forecast's lists begin at three items"
    r = made.complete()
    r["laundry_list"]["by_n"] |= {"10": r["laundry_list"]["by_n"]["8"]}
    r["laundry_list"]["by_n"] = dict(sorted(r["laundry_list"]["by_n"].items()))
    r["forecast"]["longest"] = [dict(accuracy=0.8, n_items=None), dict(accuracy=0.9, n_items=None)]
    assert [int(x) for x in brief(r).parts[0][2][0][1:]] == sorted(map(int, r["laundry_list"]["by_n"]))
    assert "80% right: 3 items" in text(r, "fails") and "No tested length" not in text(r, "fails")


def test_an_audit_that_tested_nothing_passes_nothing():
    r = made.complete()
    r["audit"]["verdicts"] = [x | dict(verdict="untested") for x in r["audit"]["verdicts"]]
    assert (
        "could test none" in text(r, "cost")
        and "Nothing got worse" not in text(r, "cost")
        and "do not use it yet" in brief(r).short
    )


def test_made_results_obey_the_schema():
    for f in made.every.values():
        check_results(f())


def test_levels_that_nobody_asks_for_are_left_out():
    r = made.complete()
    r["forecast"]["longest"] = [dict(accuracy=0.5, n_items=5), *r["forecast"]["longest"]]
    assert "50%" not in text(r, "fails") and "at 80% or better" in brief(r).short


# Advice follows from the rules


def test_a_failed_audit_is_a_refusal():
    r = made.failed_audit()
    assert "do not use it" in brief(r).short and "使わないでください" in brief(r, "ja").short
    said = text(r, "cost")
    assert "failed on: taking the item left over" in said and "Furthest beyond its limit" in said and "at 372%" in said
    strict = made.complete()
    strict["audit"] |= dict(passed=False)
    assert "did not pass" in text(strict, "cost") and "do not use" in brief(strict).short


def test_advice_on_edits():
    r = made.complete()
    assert "can be used within the limits" in brief(r).short
    doubtful = deepcopy(r)
    doubtful["lifting"]["learned"]["lists"][2]["low"] = -0.01
    assert "not certain" in brief(doubtful).short
    assert "not audited" in brief(made.without(r, "audit")).short and "should not be used yet" in text(
        made.without(r, "audit"), "cost"
    )
    assert "not measured here" in brief(made.without(r, "lifting")).short
    assert "No edit was trained" in brief(made.without(r, "lifting", "audit")).short


def test_random_numbers_that_do_as_well_are_named():
    r = made.complete()
    assert "clearly less" in text(r, "edit") and "not shown that the choice" not in text(r, "edit")
    r["lifting"]["learned"]["random"] = deepcopy(r["lifting"]["learned"]["lists"])
    assert "not shown that the choice" in text(r, "edit") and "clearly less" not in text(r, "edit")


@pytest.mark.parametrize(
    "auroc,ci,says",
    [
        (0.52, [0.45, 0.59], "not clearly better than guessing"),
        (0.9, [0.87, 0.93], "clearly better than using the model's own"),
        (0.6, [0.55, 0.64], "own confidence does better"),
        (0.74, [0.7, 0.78], "no clear difference"),
    ],
)
def test_a_forecast_is_measured_against_confidence(auroc, ci, says):
    r = made.complete()
    r["forecast"] |= dict(auroc=auroc, ci=ci)
    assert says in text(r, "ahead")


def test_chance_is_not_skill():
    r = made.complete()
    r["ioi"] |= dict(accuracy=0.53, accuracy_ci=[0.46, 0.6])
    r["laundry_list"]["by_n"]["8"] |= dict(accuracy=0.15, ci=[0.1, 0.2])
    assert "not clearly better than guessing" in text(r, "does") and "not clearly better" in brief(r).short
    assert "With 8 items it is not clearly better than guessing" in text(r, "fails")


def test_no_length_is_good_enough():
    r = made.without(made.complete(), "forecast")
    for x in r["laundry_list"]["by_n"].values():
        x |= dict(accuracy=0.4, ci=[0.3, 0.5])
    assert "No tested length keeps at least 80%" in text(r, "fails") and "not certain to reach 80%" in brief(r).short


def test_a_gap_in_the_curve_ends_the_reach():
    "A longer list that does well by luck does not count beyond a shorter one that fails"
    r = made.without(made.complete(), "forecast")
    r["laundry_list"]["by_n"]["8"] |= dict(accuracy=0.95, ci=[0.92, 0.98])
    assert "80% right: 3 items" in text(r, "fails")


# What could not be measured


def test_what_could_not_be_tested_is_never_a_failure():
    r = made.complete()
    why = ["no_heads", "no_heads", "unmoved", "no_room"]
    here = "cannot be tested here"
    r["verdicts"] = [v | dict(verdict=here, why=k) for v, k in zip(r["verdicts"], why)] + r["verdicts"][4:5]
    said = text(r, "sure")
    assert "1 did not replicate." in said and "4 more could not be tested here" in said
    assert "Of these, 2: no unit of the kind was found" in said
    assert "Of these, 1: the intervention moved nothing" in said
    ja = text(r, "sure", "ja")
    assert "検証できなかった主張のうち2件：該当する部品が見つかりませんでした" in ja
    assert "再現せず1件）" in ja
    r["verdicts"] = [v | dict(why="no_skill") for v in r["verdicts"][:4]]
    said = text(r, "sure")
    assert "None of the paper's claims, 4 in all, could be judged. Why not: the model cannot do the task" in said
    assert "replicate" not in said and "再現せず" not in text(r, "sure", "ja")


def test_every_kind_of_lack_has_its_words():
    from talking_heads.paper.claims import lacks

    assert {f"w_{k}" for k in lacks} == {k for k in room._words if k.startswith("w_")} - {"w_unknown"}


@pytest.mark.parametrize(
    "change,says",
    [
        (dict(relative=None), "not clearly there"),
        (dict(everywhere={"intact": dict(score=0.02, ci=[-0.03, 0.07])}), "not clearly there"),
        (dict(fall=0.0, ci=[0.0, 0.0], head=dict(fall=0.0, ci=[0.0, 0.0])), "moved nothing"),
    ],
)
def test_a_removal_without_reach_takes_no_share(change, says):
    r = made.complete()
    r["removal"] |= change
    assert says in text(r, "inside") and "%" not in text(r, "inside")


def test_a_removal_has_its_interval():
    assert "takes 76% of this signal (95% interval 69% to 83%)" in text(made.complete(), "inside")
    r = made.complete()
    r["removal"].pop("relative_ci")  # an older run
    assert "takes 76% of this signal; any other" in text(r, "inside")


def test_a_forecast_needs_failures():
    for f in (dict(base_rate=0.0), dict(base_rate=1.0), dict(auroc=None, ci=[None, None])):
        r = made.complete()
        r["forecast"] |= f
        assert "could not be measured" in text(r, "ahead") and "%" not in text(r, "ahead")
    r = made.without(made.complete(), "forecast") | dict(untested=dict(forecast="All fail."))
    assert "could not be measured" in text(r, "ahead") and "測れませんでした" in text(r, "ahead", "ja")
    r = made.complete()
    r["forecast"]["worst"][0] |= dict(failure=0.0)
    assert "No list in the part that was set aside failed" in text(r, "fails")


def test_no_rank_among_equals():
    r = made.without(made.complete(), "forecast")
    by = r["laundry_list"]["by_n"]["8"]
    by["by_position"] = {str(i): 1.0 for i in range(1, 9)}
    assert "all places of the answer do alike" in text(r, "fails") and "least often at place" not in text(r, "fails")
    by["by_position"]["3"] = 0.5
    assert "no interval for single places" in text(r, "fails")
    by["by_position_ci"] = {"3": [0.31, 0.69]}
    assert "place 3: 50% right (95% interval 31% to 69%)" in text(r, "fails")


def test_a_ceiling_leaves_nothing_to_gain():
    r = made.complete()
    for x in r["lifting"]["learned"]["lists"]:
        x |= dict(before=0.99, after=0.99, change=0.0, low=-0.01, high=0.01)
    said = text(r, "edit")
    assert "nothing to gain" in said and "points" not in said and "nothing to gain" in brief(r).short
    q = made.quick()
    for x in q["lifting"]["scaling"]:
        x |= dict(before=1.0)
    assert "nothing to gain" in text(q, "edit")
    for x in q["lifting"]["scaling"]:
        x |= dict(before=0.4, change=0.0, moved=0.0)
    assert "No factor moved the answers" in text(q, "edit") and "%" not in text(q, "edit")


# Language and form


@given(st.floats(0, 1))
@settings(deadline=None)
def test_percent_keeps_off_the_edges(x):
    shown = float(percent(x).rstrip("%"))
    assert abs(shown - 100 * x) <= 0.5 + 1e-9 and (shown != 100 or x > 0.99999) and (shown != 0 or x < 0.00001)


def test_japanese_is_polite_and_whole():
    english = {"th_edit", "undo", "out", "results", "json", "quick", "full", "edits"}
    for key, (_, ja) in room._words.items():
        words = set(re.findall(r"[A-Za-z_]+", re.sub(r"{\w+}", "", ja)))
        assert words <= english, key
        assert not re.search(r"[(),:;.?!](?![a-z])", re.sub(r"{\w+}", "", ja)), key  # full-width marks only
        plain = re.sub(r"（[^）]*）", "", ja)
        if ja.endswith("。"):
            assert re.search(r"(です|ます|ません|ました|でした|ください|})。$", plain), key


def test_unknown_language():
    with pytest.raises(TalkingHeadsError, match="not in 'de'"):
        brief(made.complete(), "de")


@pytest.mark.parametrize("name,lang", pairs)
def test_page_is_offline_and_named(tmp_path, name, lang):
    results = made.every[name]() | dict(model="/some/where/<b>mine</b>&co")
    page = BeautifulSoup(brief(results, lang).save(tmp_path / "b.html").read_text(), "html.parser")
    assert (
        page.html["lang"] == lang
        and not page.select("script, link, iframe, img, main b")
        and "/some/where" not in page.get_text()
    )
    assert [h.name for h in page.select("h1, h2, h3, h4")] == ["h1"] + [
        "h2"
    ] * 8 and "{" not in page.main.get_text().replace(brief_style, "")


def test_markdown_says_the_same(tmp_path):
    b = brief(made.complete())
    md = b.save(tmp_path / "b.md").read_text()
    assert (
        md == b.markdown()
        and all(f"## {h}\n\n{t}" in md for h, t, _ in b.parts)
        and "| right item before the other items | 99% | 87% | 56% | 25% |" in md
    )
    with pytest.raises(OutputError, match=".html or .md"):
        b.save(tmp_path / "b.txt")


@pytest.fixture(scope="module")
def th_brief(tmp_path_factory):
    script = tmp_path_factory.mktemp("bin") / "th_brief"
    script.write_text(
        "import sys\nfrom talking_heads.commands import th_brief\nif __name__ == '__main__': sys.exit(th_brief())\n"
    )
    return lambda *args: subprocess.run(
        [sys.executable, str(script), *map(str, args)], capture_output=True, text=True, timeout=100
    )


def test_command(th_brief, tmp_path):
    write_json(made.complete(), tmp_path / "results.json")
    r = th_brief(tmp_path, "--lang", "ja")
    assert r.returncode == 0 and r.stdout == brief(made.complete(), "ja").markdown()
    r = th_brief(tmp_path / "results.json", "--out", tmp_path / "x.html")
    assert r.returncode == 0 and (tmp_path / "x.html").is_file() and "x.html" in r.stdout
    for args, says in (
        ([tmp_path / "none"], "Run th_paper first"),
        ([tmp_path, "--lang", "fr"], "not in 'fr'"),
        ([tmp_path, "--out", tmp_path / "a.pdf"], ".html or .md"),
    ):
        r = th_brief(*args)
        assert r.returncode == 1 and says in r.stderr and "Traceback" not in r.stderr


def crowded():
    "More of everything than a run has: ten lengths, every rule failed, unsure and untested, no section but these"
    r = made.without(made.failed_audit(), "heads", "removal", "steering", "signal", "crowding")
    r["laundry_list"]["by_n"] = {str(k): deepcopy(r["laundry_list"]["by_n"]["5"]) for k in range(2, 12)}
    rules = [v["rule"] for v in r["audit"]["verdicts"]]
    r["audit"] |= dict(failed=rules, unsure=rules[:4], untested=rules[4:])
    return r


@pytest.mark.slow
def test_one_sheet_of_paper(tmp_path):
    "Printed on A4, and no wider than a phone"
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
    from browser import browser

    with browser() as b:
        for name, lang in [*pairs, ("crowded", "en"), ("crowded", "ja")]:
            page = b.new_page(viewport=dict(width=390, height=800))
            page.goto(
                brief(crowded() if name == "crowded" else made.every[name](), lang)
                .save(tmp_path / f"{name}.{lang}.html")
                .as_uri()
            )
            assert name == "crowded" or not page.evaluate("document.documentElement.scrollWidth > innerWidth"), (
                name,
                lang,
            )
            assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4", prefer_css_page_size=True))) == 1, (
                name,
                lang,
            )
            page.close()
