"From a model to an edit that may be kept: budgets, the rule, what is written and what is removed"

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from talking_heads.edits.audit import Budget, AuditPlan
from talking_heads.base.core import *
from talking_heads.hooks import load_model
from talking_heads.interventions import load_edit
from talking_heads.edits.proposals import *
from talking_heads.edits.proposals import _decide

lists = SimpleNamespace(own=(), gain=("lists", "top1", "held-out"))  # of the material, what the decision needs
small = AuditPlan(ioi=30, lists=(7, 8), per_template=20, per_form=4, induction=4)


@pytest.fixture(scope="module")
def toy():
    return load_model("toy", device="cpu")


@pytest.fixture(scope="module")
def outcome(toy):
    return propose_and_audit(toy, Budget(ioi=None, lists=None, lag=None), "tiny", small)


def test_budgets_are_read():
    assert (
        parse_budget("kl=0.01, wrong=none lag=.3") == Budget(kl=0.01, wrong=None, lag=0.3)
        and parse_budget("") == Budget()
    )
    assert parse_budget("wrong=4%, loss = 0.5%") == Budget(wrong=0.04, loss=0.005)
    for bad in (
        "kl",
        "kl=x",
        "nothing=1",
        "strict=1",
        "kl=-1",
        "kl=inf",
        "kl=nan",
        "kl=",
        "=1",
        "kl=2%",
        "wrong=%",
        "wrong=5",
        "kl=1,kl=1",
    ):
        with pytest.raises(TalkingHeadsError):
            parse_budget(bad)
    for bad, near in (("Kl=1", "kl"), ("indcution=1", "induction"), ("list=1", "lists")):
        with pytest.raises(TalkingHeadsError, match=f"Nearest: {near}"):
            parse_budget(bad)


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(budget="kl=abc"), "not a number"),
        (dict(budget="kl=0"), "allows no edit"),
        (dict(how="quik"), "Unknown effort"),
        (dict(device="gpu"), "no device"),
        (dict(device="cuda:99"), "cuda:99|CUDA"),
    ],
)
def test_what_can_be_refused_is_refused_before_the_model_is_looked_for(monkeypatch, tmp_path, change, says):
    from talking_heads import commands, hooks

    def never(*args, **kw):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(hooks, "load_model", never)
    asked = (
        dict(
            model="toy",
            budget="",
            out=str(tmp_path / "x"),
            how="tiny",
            full_audit=False,
            dry_run=False,
            baked=False,
            seed=0,
            device="cpu",
        )
        | change
    )
    with pytest.raises(TalkingHeadsError, match=says):
        commands._edit(**asked)
    assert not (tmp_path / "x").exists()


def test_no_lists_no_gain(toy, outcome, monkeypatch):
    from talking_heads.edits import proposals

    monkeypatch.setattr(proposals, "propose_edit", lambda *args, **kw: outcome)
    monkeypatch.setattr(proposals, "propose_guarded", lambda *args: (outcome, lists))
    for gains in (False, True):
        with pytest.raises(TaskError, match="no gain can be shown"):
            propose_and_audit(toy, how="tiny", plan=replace(small, lists=()), gains=gains)


def test_gains_where_they_are_asked_for_and_nothing_must_stay(toy, outcome, monkeypatch):
    "Everything is trained under guards; gains are for lists alone"
    from talking_heads.edits import proposals

    way = []
    monkeypatch.setattr(proposals, "propose_edit", lambda *args, **kw: way.append("gains") or outcome)
    monkeypatch.setattr(proposals, "propose_guarded", lambda *args: way.append("guards") or (outcome, lists))
    monkeypatch.setattr(proposals, "audit", lambda *args, **kw: outcome.audit)
    for more in (dict(gains=True), dict(), dict(keep=["any"]), dict(task="any file")):
        propose_and_audit(toy, how="tiny", **more)
    assert way == ["gains", "guards", "guards", "guards"]
    for more in (dict(keep=["any"]), dict(task="any file")):
        with pytest.raises(UsageError, match="lists alone"):
            propose_and_audit(toy, how="tiny", gains=True, **more)


def test_nothing_is_proposed_for_a_budget_of_zero(toy):
    with pytest.raises(TalkingHeadsError, match="allows no edit"):
        propose_and_audit(toy, Budget(kl=0.0), "tiny", small)


def test_the_rule(outcome):
    "Kept only if no rule fails and the lift is certain"
    lift = dict(before=0.3, after=0.5, change=0.2, low=0.1, high=0.3, n=100)
    v = outcome.audit.verdicts
    passing = replace(outcome.audit, verdicts=v.assign(verdict="pass"))
    failing = replace(outcome.audit, verdicts=v.assign(verdict=["fail"] + ["pass"] * (len(v) - 1)))
    assert _decide(passing, lift)[0] and not _decide(failing, lift)[0] and v.rule[0] in _decide(failing, lift)[1]
    for low in (0.0, -0.01):
        assert not _decide(passing, lift | dict(low=low))[0]
    unsure = replace(passing, verdicts=v.assign(verdict="unsure"))
    assert (
        _decide(unsure, lift)[0] and not _decide(replace(unsure, budget=replace(unsure.budget, strict=True)), lift)[0]
    )


def test_the_model_is_left_as_it_was(toy, outcome):
    fresh = load_model("toy", device="cpu")
    assert all(torch.equal(p, q) for p, q in zip(toy.original_model.parameters(), fresh.original_model.parameters()))


def test_a_kept_edit_is_written_and_removed(toy, outcome, tmp_path):
    kept = replace(outcome, kept=True, why="for the test")
    write_outcome(kept, toy, tmp_path / "a")
    assert (
        load_edit(tmp_path / "a" / "edit", toy) == kept.edit
        and (tmp_path / "a" / "adapter" / "adapter_model.safetensors").is_file()
    )
    audit = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert audit["passed"] == outcome.audit.passed
    text = (tmp_path / "a" / "edit.html").read_text()
    assert (
        "How to undo it" in text
        and "http://" not in text.replace("http://www.w3.org", "")
        and kept.edit.sha256[:8] in text
    )
    (tmp_path / "a" / "mine.txt").write_text("keep me")
    write_outcome(kept, toy, tmp_path / "a")  # again, over its own
    remove_outcome(tmp_path / "a")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["mine.txt"]


def test_a_rejected_edit_leaves_a_report_and_no_weights(toy, outcome, tmp_path):
    write_outcome(replace(outcome, kept=False, why="no"), toy, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"audit.json", "edit.html", "th_edit.json"}


def test_what_was_changed_or_is_not_ours_stays(toy, outcome, tmp_path):
    write_outcome(replace(outcome, kept=True), toy, tmp_path / "a")
    (tmp_path / "a" / "edit.html").write_text("my notes")
    with pytest.raises(OutputError, match="was changed"):
        remove_outcome(tmp_path / "a")
    assert (tmp_path / "a" / "edit" / "edit.json").is_file()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "audit.json").write_text("{}")
    with pytest.raises(OutputError, match="did not write"):
        write_outcome(outcome, toy, tmp_path / "b")
    with pytest.raises(OutputError, match="nothing to undo"):
        remove_outcome(tmp_path / "c")


def th_edit(*args):
    return subprocess.run(
        [str(Path(sys.executable).parent / "th_edit"), *map(str, args)], capture_output=True, text=True, timeout=600
    )


def test_a_dry_run_writes_nothing(toy, outcome, tmp_path, monkeypatch, capsys):
    "It says what was found, and its exit code says whether the edit would be kept"
    from talking_heads import commands, hooks
    from talking_heads.edits import proposals

    monkeypatch.setattr(hooks, "load_model", lambda *args, **kw: toy)
    for kept in (True, False):
        monkeypatch.setattr(proposals, "propose_and_audit", lambda *args: replace(outcome, kept=kept))
        code = 0
        try:
            commands._edit("toy", "", tmp_path / "x", "tiny", False, True, False, 0, "cpu")
        except SystemExit as e:
            code = e.code
        assert (
            code == (0 if kept else 2)
            and "Nothing was written" in capsys.readouterr().out
            and not (tmp_path / "x").exists()
        )


@pytest.mark.slow
def test_the_command(tmp_path):
    "What is written agrees with the exit code; undo clears; errors are paragraphs"
    real = th_edit("toy", "--how", "tiny", "--budget", "ioi=none,lists=none,lag=none", "--out", tmp_path / "x")
    kept = json.loads((tmp_path / "x" / "th_edit.json").read_text())["kept"]
    assert (
        real.returncode == (0 if kept else 2)
        and (tmp_path / "x" / "edit").exists() == kept
        and (tmp_path / "x" / "edit.html").is_file()
    ), real.stderr
    undone = th_edit("toy", "--undo", "--out", tmp_path / "x")
    assert undone.returncode == 0 and "Removed" in undone.stdout and not list((tmp_path / "x").iterdir())
    bad = th_edit("toy", "--budget", "klx=1", "--out", tmp_path / "y")
    assert bad.returncode == 1 and "no limit 'klx'" in bad.stderr and "Traceback" not in bad.stderr


@pytest.mark.parametrize(
    "how,flag,full", [("quick", False, False), ("quick", True, True), ("full", False, True), ("tiny", False, False)]
)
def test_full_effort_is_audited_in_full(toy, outcome, monkeypatch, how, flag, full):
    "An edit that took long to train is not judged on a few prompts, by the command or from Python"
    from talking_heads import commands, hooks
    from talking_heads.edits import audit
    from talking_heads.edits import proposals

    asked = []
    monkeypatch.setattr(hooks, "load_model", lambda *args, **kw: toy)
    monkeypatch.setattr(proposals, "propose_edit", lambda *args, **kw: outcome)
    monkeypatch.setattr(proposals, "audit", lambda model, edit, budget, plan, **kw: asked.append(plan) or outcome.audit)
    try:
        commands._edit("toy", "", "unused", how, flag, True, False, 0, "cpu")
    except SystemExit:
        pass
    if not flag:
        propose_and_audit(toy, how=how)
    assert set(asked) == {audit.full if full else audit.quick}
