"th_find as a user calls it: a run, an interrupted one that goes on, a replaced one, and what bad input gets"

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from talking_heads import commands
from talking_heads.base.core import TaskError
from talking_heads.circuits import find_report
from talking_heads.circuits.find_page import find_brief, find_html
from talking_heads.circuits.find_report import *
from talking_heads.data import corrupt, ioi, ioi_task
from talking_heads.hooks import load_model

FILES = {"find.json", "find.html", "brief.en.html", "brief.ja.html", "accuracy.parquet"}
TABLES = {"edges.parquet", "writers.parquet", "components.parquet"}


@pytest.fixture(scope="module")
def toy():
    return load_model("toy")


@pytest.fixture
def loaded(toy, monkeypatch):
    "The model is loaded already"
    monkeypatch.setattr("talking_heads.hooks.load_model", lambda *args, **kw: toy)


@pytest.fixture
def unloaded(monkeypatch):
    "Whatever is refused here is refused before a model is loaded"
    monkeypatch.setattr("talking_heads.hooks.load_model", lambda *args, **kw: pytest.fail("a model was loaded"))


def stored(out):
    "Numbers of a run without the time it took"
    r = json.loads((out / "find.json").read_text(encoding="utf-8"))
    r.pop("seconds")
    return r


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("find") / "a"
    return find(toy, "ioi", out=out, n=60), out


def test_run(run):
    found, out = run
    assert FILES | TABLES <= {p.name for p in out.iterdir()}
    assert {"accuracy.json", "circuit.json", "curve.json"} <= {p.name for p in (out / "charts").iterdir()}
    r = stored(out)
    assert {(e["sender"], e["mode"]) for e in r["edges"]} == {("1.0", "Q"), ("1.1", "Q")}
    assert r["explained"]["called"]["share"] > 0.7 > max(r["explained"]["random"]) + 0.5
    assert r["seed"] == 0 and r["n"] == 60 and r["provenance"]["sha256"] and r["halves"] is None
    names = {x["head"]: x["names"] for x in r["classes"]}
    assert "mover" in names["2.1"] and "inhibition" in names["1.1"]
    edges = pd.read_parquet(out / "edges.parquet")
    assert list(edges)[:6] == "mode src_layer src_head dst_layer dst_head effect".split()
    assert edges[edges.sender == "embedding"].src_layer.isna().all() and len(edges) == r["counted"]["measured"]
    assert found.results | {} == {k: v for k, v in r.items()}


def test_pages_are_made_from_the_summary_alone(run):
    found, out = run
    r = stored(out)
    for lang in ("en", "ja"):
        assert find_brief(r, lang).markdown() == found.brief(lang).markdown()
        page = (out / f"brief.{lang}.html").read_text(encoding="utf-8")
        assert f'lang="{lang}"' in page and "http" not in page.split("<body>")[1]
    page = (out / "find.html").read_text(encoding="utf-8")
    order = ["Where it is right", "Who writes the answer", "Who talks to them", "Through which components"]
    order += ["How much it explains", "What the coordinates separate", "What not to conclude"]
    places = [page.index(f">{h}</h2>") for h in order]
    assert places == sorted(places)
    assert find_html(r, {}).count("<h2>") >= len(order)


def test_too_few_prompts_to_call_anything(toy, tmp_path):
    "Nothing is called, nothing is claimed, and it reads back as it was"
    for _ in range(2):
        found = find(toy, "ioi", out=tmp_path / "a", n=5)
        assert not len(found.circuit.edges) and found.results["separation"] is None
        assert "was not found" in found.brief().short and "No head was found" in found.results["notes"][0]


def leaves(x):
    "All numbers below `x`; the length of a list counts"
    if isinstance(x, dict):
        return [y for v in x.values() for y in leaves(v)]
    if isinstance(x, list):
        return [float(len(x))] + [y for v in x for y in leaves(v)]
    return [float(x)] if isinstance(x, (int, float)) and not isinstance(x, bool) else []


def test_every_number_of_the_brief_is_in_the_summary(run):
    "As it is or as a percentage, within its rounding; names of parts are left out"
    r = stored(run[1])
    signs = [w["effect"] > 0 for w in r["writers"] if w["called"]]
    pool = leaves(r) + [0.95, 0.8, signs.count(True), signs.count(False), sum(r["explained"]["random"]) / 2]
    for lang in ("en", "ja"):
        text = re.sub(r"\d+\.\d+(\.\d+)?(?![\d%])|MLP \d+", "", find_brief(r, lang).markdown())
        for token in re.findall(r"\d+(?:\.\d+)?", text):
            off = 0.5 * 10 ** -len(token.partition(".")[2]) + 1e-9
            assert any(abs(float(token) - s * abs(x)) <= off for x in pool for s in (1, 100)), token


def test_interrupted_and_continued(toy, run, tmp_path, monkeypatch):
    "What was finished is not computed again, and the numbers are those of a run in one go"
    out = tmp_path / "b"

    def stop(*args, **kw):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(find_report, "channel_of", stop)
        with pytest.raises(KeyboardInterrupt):
            find(toy, "ioi", out=out, n=60)
    assert (out / "tables" / "edges.parquet").is_file() and not (out / "find.json").exists()
    with monkeypatch.context() as m:
        m.setattr(find_report, "find_circuit", lambda *args, **kw: pytest.fail("the circuit was found again"))
        find(toy, "ioi", out=out, n=60)
    assert stored(out) == stored(run[1])


def test_th_find(loaded, tmp_path, called):
    "Run, the same again, and another one in its place"
    out = tmp_path / "a"
    code, said = called(commands.th_find, "toy", task="ioi", out=str(out), n=40)
    assert code == 0 and "links found explain" in said and str(out / "find.html") in said
    first = stored(out)
    code, said = called(commands.th_find, "toy", task="ioi", out=str(out), n=40)
    assert code == 0 and "Went on with what was there" in said and stored(out) == first
    code, said = called(commands.th_find, "toy", task="ioi", out=str(out), n=30, seed=1)
    assert code == 0 and "Replaced an earlier run on ioi" in said and stored(out)["seed"] == 1


def wrong_way(tokenizer, n, seed, split, bos):
    "IOI with the wrong name as the answer"

    def turn(p):
        other = dict(distractors=(p.answer,), distractor_ids=(p.answer_id,))
        return replace(p, answer=p.distractors[0], answer_id=p.distractor_ids[0], **other)

    made = ioi(tokenizer, n, seed, bos)
    return replace(made, prompts=tuple(map(turn, made)))


def test_a_task_that_the_model_cannot_do(loaded, tmp_path, called, monkeypatch):
    "Said, with the accuracy written and nothing else claimed"
    monkeypatch.setattr("talking_heads.tasks.known.known_tasks", {"ioi": replace(ioi_task, make=wrong_way)})
    out = tmp_path / "a"
    code, said = called(commands.th_find, "toy", task="ioi", out=str(out), n=20)
    assert code == 2 and "cannot do this task" in said
    assert FILES <= {p.name for p in out.iterdir()} and not (out / "edges.parquet").exists()
    r = stored(out)
    assert r["stopped"]["kind"] == "cannot" and r["accuracy"][0]["correct"] < 0.1
    assert "Who writes" not in (out / "find.html").read_text(encoding="utf-8")
    assert called(commands.th_find, "toy", task="ioi", out=str(out), n=20)[0] == 2  # and again from what is stored


def file(path, rows, encoding="utf-8"):
    path.write_text("prompt,answer,wrong,twin,kind\n" + "".join(rows), encoding=encoding)
    return str(path)


def rows(toy, n):
    "Prompts in the toy's words whose answer is the name that is not repeated"
    out = []
    for p, q in zip(ioi(toy.tokenizer, n, 0), corrupt(ioi(toy.tokenizer, n, 0))):
        text, twin = (x.text.replace(",", "") for x in (p, q))
        out.append(f"{text},{p.answer},{p.distractors[0]},{twin},1\n")
    return out


@pytest.mark.parametrize(
    "kw, words",
    [
        (dict(task="nothing"), "no task 'nothing'"),
        (dict(task=None), "Which task?"),
        (dict(task="induction"), "without answers"),
        (dict(task="contrast"), "which answers are right"),
        (dict(how="fast"), "Choose quick or full"),
        (dict(n=2), "Give 4 or more"),
        (dict(seed=-1), "seed"),
        (dict(most=0), "--most 0"),
        (dict(task="missing.csv"), "missing.csv"),
    ],
)
def test_refused_before_a_model_is_loaded(unloaded, tmp_path, called, kw, words):
    code, said = called(commands.th_find, **dict(model="toy", task="ioi", out=str(tmp_path / "a")) | kw)
    assert code == 1 and words in said and "Traceback" not in said


def test_bad_files(unloaded, tmp_path, called):
    "Columns, encoding, and prompts beyond the context are named before a model is loaded"
    (tmp_path / "a.csv").write_text("text,answer\nx,y\n")
    (tmp_path / "b.csv").write_bytes("prompt,answer\nZoë said,yes\n".encode("latin-1"))
    long = "Mary and John " * 400
    file(tmp_path / "c.csv", [f"{long} gave it to,Mary,John,,1\n"])
    for name, words in (("a.csv", "prompt"), ("b.csv", "UTF-8"), ("c.csv", "the model reads")):
        code, said = called(commands.th_find, "toy", task=str(tmp_path / name), out=str(tmp_path / "o"))
        assert code == 1 and words in said and "Traceback" not in said, said


def test_somebody_elses_folder(unloaded, tmp_path, called):
    (tmp_path / "find.html").write_text("mine")
    code, said = called(commands.th_find, "toy", task="ioi", out=str(tmp_path))
    assert code == 1 and "no run of this package made" in said and (tmp_path / "find.html").read_text() == "mine"


def test_a_file_of_ones_own(toy, loaded, tmp_path, called):
    "Sampled and said; one group only is said too"
    path = file(tmp_path / "mine.csv", rows(toy, 48))
    code, said = called(commands.th_find, "toy", task=path, out=str(tmp_path / "a"), n=24, most=40)
    assert code in (0, 2), said
    r = stored(tmp_path / "a")
    assert r["file"]["total"] == 48 and r["file"]["taken"] == 40 and "sample: 40 of 48 rows" in said
    assert "one group only" in said
    brief = find_brief(r).markdown()
    assert "drawn at random" in brief and "mine.csv" in brief


def test_effects_against_somebody_elses():
    "Rank correlation and precision of the same, of noise, and where nothing is shared"
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, generator=g).double().numpy()
    place = dict(src_layer=0, src_head=range(400), dst_layer=1, dst_head=0)
    a = pd.DataFrame(dict(mode="Q", effect=x) | place)
    same = compare_effects(a, a.assign(effect=2 * x)).set_index("mode")
    assert same.correlation["Q"] == pytest.approx(1) and same.precision["Q"] == 1 and same.n["K"] == 0
    noise = compare_effects(a, a.assign(effect=torch.randn(400, generator=g).numpy())).set_index("mode")
    assert abs(noise.correlation["Q"]) < 0.15 and noise.precision["Q"] < 0.2
    assert compare_effects(a, a.assign(effect=-x)).set_index("mode").signed["Q"] == pytest.approx(-1)


def test_gpt2_agrees_with_a_measurement_by_others(shared, tmp_path):
    "Edges of GPT-2 small on IOI against EAP-IG; runs where GPT-2 is in the local cache"
    from talking_heads.base.checkpoints import find_checkpoint

    try:
        find_checkpoint("gpt2")
    except Exception as e:
        pytest.skip(f"GPT-2 is not in the local Hugging Face cache: {type(e).__name__}")
    theirs = pd.read_parquet(shared / "gpt2-ioi-edges" / "heads.parquet")
    c = find_report.find_circuit(load_model("gpt2"), "ioi", n=24)
    f = compare_effects(effect_table(c.measured), theirs).set_index("mode")
    assert (f.n[["Q", "V"]] > 100).all() and f.correlation["Q"] > 0 and f.precision["Q"] > 2 * f.chance["Q"]
