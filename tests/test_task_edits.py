"Edits of any task: parts that share no row, what must stay, material, and the command on a file"

import csv
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from talking_heads.base.core import *
from talking_heads.data import *
from talking_heads.edits.audit import AuditPlan, Budget
from talking_heads.edits.guards import *
from talking_heads.edits.proposals import *
from talking_heads.edits.task_edits import *
from talking_heads.edits.upper_layers import UpperLayers
from talking_heads.hooks import load_model, task_args
from talking_heads.interventions import active_edits, edited
from talking_heads.tasks.files import file_task
from talking_heads.tasks.shop import shop_file

small = AuditPlan(ioi=20, lists=(7,), per_template=10, per_form=4, induction=4)
known = EditedHeads((Head(1, 0),), (Head(2, 1),), 1)


@pytest.fixture(scope="module")
def toy():
    return load_model("toy", device="cpu")


def names_file(model, path, n, right=True, split=None):
    "Prompts that the toy can do, or with their answers turned around, as a file"
    with open(path, "w", newline="") as f:
        w = csv.writer(f)
        w.writerow(["prompt", "answer", "wrong"] + ["split"] * (split is not None))
        for i, p in enumerate(ioi_task.prompts(**task_args(model), n=n, seed=3)):
            pair = [p.answer, p.distractors[0]][:: 1 if right else -1]
            w.writerow([p.text, *pair] + ([split(i)] if split else []))
    return path


@pytest.fixture(scope="module")
def files(toy, tmp_path_factory):
    d = tmp_path_factory.mktemp("files")
    return dict(
        right=names_file(toy, d / "right.csv", 80),
        wrong=names_file(toy, d / "wrong.csv", 60, right=False),
        few=names_file(toy, d / "few.csv", 20),
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(least_rows, 200))
def test_each_row_is_in_one_part(seed, n):
    shop = file_task(shop_file())
    task = file_task(replace(shop.file, rows=shop.file.rows[:n]), "part of the shop")
    try:
        parts = file_parts(task, seed)
    except TaskError as e:
        assert "needs 8" in str(e)
        return
    rows = [r.row for t in parts.values() for r in t.file.rows]
    assert sorted(rows) == sorted(r.row for r in task.file.rows)
    held = {r.info["split"] for r in parts["judge"].file.rows}
    learned = {r.info["split"] for k in ("train", "choose") for r in parts[k].file.rows}
    if {r.info["split"] for r in task.file.rows} > {"train"}:
        assert "train" not in held and learned == {"train"}
    assert [r.row for r in file_parts(task, seed)["train"].file.rows] == [r.row for r in parts["train"].file.rows]


def test_what_cannot_be_kept_or_split_is_refused(toy, files):
    with pytest.raises(TaskError, match="too few"):
        file_parts(file_task(files["few"]))
    with pytest.raises(TaskError, match="nothing to keep"):
        propose_guarded(toy, "laundry", "tiny", circuit=known, keep=[parse_keep(str(files["wrong"]))])
    for bad in ("0", "2"):
        with pytest.raises(TaskError, match="no share"):
            parse_keep(f"{files['right']}:{bad}")
    with pytest.raises(TaskError, match="no right answers"):
        parse_keep("text")
    with pytest.raises(TaskError, match="laundry, or a file"):
        edit_material(UpperLayers(toy, 1), ioi_task)
    assert parse_keep(f"{files['right']}:5%").limit == 0.05


@torch.no_grad()
def test_a_kept_file_is_a_guard_and_a_rule(toy, files):
    "Even rows guard, odd rows choose, all rows judge; the guard's loss is that of plain runs"
    keep = parse_keep(f"{files['right']}:0.03")
    m = list_material(UpperLayers(toy, 1), material_sizes["tiny"], keep=[keep])
    guard, held = m.guards[-1], m.held.guards[-1]
    assert guard.name == held.name == "right.csv (keep)" and len(guard) == len(held) == 40
    texts = [{p.text for _, q in g.batches for p in q} for g in (guard, held)]
    assert not texts[0] & texts[1]
    (own,) = m.own
    assert (own.n, own.limit, own.measure) == (80, 0.03, "correct")
    assert guard.whole(UpperLayers(toy, 1), {}) == pytest.approx(0, abs=1e-5)


@pytest.fixture(scope="module")
def outcome(toy, files):
    task = file_task(files["right"])
    before = {n: p.clone() for n, p in toy.original_model.named_parameters()}
    o = propose_and_audit(toy, Budget(lists=None, lag=None), "tiny", small, task=task, keep=[parse_keep("ioi:0.05")])
    assert active_edits(toy) == ()
    assert all(torch.equal(before[n], p) for n, p in toy.original_model.named_parameters())
    return o


def test_any_file_can_be_lifted(toy, files, outcome):
    "The lift is that of rows that training did not see, by whole candidates with the edit in the weights"
    from talking_heads.tasks.candidates import whole_scores

    judge = file_parts(file_task(files["right"]), 0)["judge"]
    p = judge.prompts(**task_args(toy), n=len(judge.file.rows), paired=False)
    with edited(toy, outcome.edit):
        after = whole_scores(toy, p).correct.mean()
    assert outcome.lift["n"] == len(judge.file.rows)
    assert outcome.lift["after"] == pytest.approx(after) and outcome.lift["before"] == pytest.approx(
        whole_scores(toy, p).correct.mean()
    )
    assert set(outcome.audit.verdicts.rule) >= {"ioi (own)", f"{judge.name} (own)"}
    assert "right.csv has no column split" in " ".join(outcome.record["notes"])
    assert outcome.kept == (outcome.audit.passed and outcome.lift["low"] > 0)


def test_the_worst_comes_first(outcome):
    v = outcome.audit.verdicts
    used = v[v.used > 0]
    if len(used):
        assert f"the worst is {used.rule.iloc[0]} with" in outcome.why
    assert used.used.is_monotonic_decreasing


def test_the_command_takes_files(toy, files, monkeypatch, tmp_path, capsys):
    "The task is read and split, what must stay is handed on, and a file that cannot be used ends it early"
    from talking_heads import commands, hooks
    from talking_heads.edits import proposals

    asked = []
    monkeypatch.setattr(hooks, "load_model", lambda *args, **kw: toy)
    monkeypatch.setattr(proposals, "propose_and_audit", lambda *args: asked.append(args) or stop())

    def stop():
        raise SystemExit(7)

    args = ("toy", "", tmp_path / "x", "tiny", False, True, False, 0, "cpu")
    with pytest.raises(SystemExit):
        commands._edit(*args, str(files["right"]), [f"{files['right']}:0.01"])
    *_, task, keep, _ = asked[0]
    assert task.name == "right.csv" and keep[0].limit == 0.01 and keep[0].task.name == "right.csv"
    with pytest.raises(TaskError):
        commands._edit(*args, str(tmp_path / "none.csv"), [])
