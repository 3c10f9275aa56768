"The referee: outcomes, exit codes, what is refused, and the model as it was"

import json
from contextlib import contextmanager
from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import tiny
from talking_heads.base.core import *
from talking_heads.commands import th_audit
from talking_heads.data import list_task
from talking_heads.edits.adapters import *
from talking_heads.edits.audit import *
from talking_heads.edits.referee import *
from talking_heads.edits.weight_changes import *
from talking_heads.hooks import *
from talking_heads.interventions import *

small = AuditPlan(ioi=60, lists=(5,), per_template=10, induction=0)
bias = "transformer.h.1.mlp.c_fc.bias"


@pytest.fixture(scope="module")
def toy():
    return load_model("toy", device="cpu")


@pytest.fixture(scope="module")
def circuit(toy):
    return component_edit(toy, dict.fromkeys(["1.0.0", "1.0.1", "1.1.0", "1.1.1"], 0.0), name="circuit removed")


@pytest.fixture(scope="module")
def report(toy, circuit):
    return referee(toy, change_of_edit(circuit, toy), plan=small, controls=1)


def weights(model):
    return {n: p.detach().clone() for n, p in model.original_model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[n], b[n]) for n in a)


def little(toy, size=1e-4):
    return weight_change(toy, {bias: Added(torch.full((64,), size))}, "tensors", "little")


def test_the_audit_of_a_change_is_that_of_the_edit(toy, circuit, report):
    a = audit(toy, circuit, plan=small)
    assert a.verdicts.verdict.tolist() == report.audit.verdicts.verdict.tolist()
    assert a.verdicts.value.dropna().tolist() == pytest.approx(report.audit.verdicts.value.dropna().tolist())
    assert report.audit.info["edit"]["kind"] == "edit"


def test_three_outcomes(toy, report):
    assert (report.outcome, report.exit_code, report.worst.rule) == ("failed", 2, "ioi")
    v = report.audit.verdicts
    made = lambda verdict: replace(report, audit=replace(report.audit, verdicts=v.assign(verdict=verdict)))
    assert (made("pass").outcome, made("pass").exit_code) == ("passed", 0)
    assert (made("unsure").outcome, made("unsure").exit_code) == ("unsure", 3)
    assert (made("untested").outcome, made("untested").worst) == ("unsure", None)
    some = made(["pass", "unsure", "unsure"] + ["untested"] * (len(v) - 3))
    far = v.assign(high=[9.0, 1.0, 2.0] + [float("nan")] * (len(v) - 3), limit=1.0, verdict=some.audit.verdicts.verdict)
    assert replace(some, audit=replace(some.audit, verdicts=far)).worst.name == 2  # reaches furthest beyond
    assert made("untested").sentences[0] == "Unsure. Nothing could be tested on this model."


def test_how_many_prompts_it_would_take(toy):
    a = audit(toy, little(toy), plan=small)
    v = a.verdicts.assign(verdict="pass")
    v.loc[v.rule == "ioi", ["verdict", "value", "high", "limit"]] = ["unsure", 0.004, 0.016, 0.01]
    need = prompts_needed(replace(a, verdicts=v))
    assert need.to_dict("records") == [dict(rule="ioi", area="ioi", n=60, needed=240)]  # half width twice the room
    v.loc[v.rule == "ioi", "value"] = 0.0  # not one lost: the bound falls with n
    assert prompts_needed(replace(a, verdicts=v)).needed[0] == 96
    v.loc[v.rule == "ioi", "value"] = 0.01
    assert prompts_needed(replace(a, verdicts=v)).needed[0] == float("inf")


def test_until_sure_ends(toy):
    before = weights(toy)
    few = AuditPlan(ioi=60, lists=(5,), per_template=10, induction=0)
    a = audit(toy, component_edit(toy, dict.fromkeys(["1.5.0", "1.6.0"], 0.0)), plan=few)
    assert a.unsure
    sure, log = run_until_sure(toy, component_edit(toy, dict.fromkeys(["1.5.0", "1.6.0"], 0.0)), a, few, most=12.0)
    assert not sure.unsure and log and all(r["n"] <= 12.5 * 60 for r in log if r["rule"] == "ioi")
    capped, log = run_until_sure(toy, little(toy), audit(toy, little(toy), plan=few), few, most=1.5)
    assert len(log) <= 6 and same(before, weights(toy))


def test_channels(toy, report):
    c = report.channels
    assert c.components.side.tolist() == ["writes"] * 2 and (c.components.angle == 90).all()
    assert c.moved.writer.str.startswith(("1.0.", "1.1.")).all() and (c.moved.change < 0).all()
    assert channel_changes(toy, little(toy)) is None


def test_files_and_order(report, tmp_path):
    files = report.save(tmp_path / "x", "toy")
    d, page, card = json.loads(files[0].read_text()), files[1].read_text(), files[2].read_text()
    assert d["referee"]["outcome"] == "failed" and d["failed"] == report.audit.failed
    assert d["referee"]["said"][0].startswith("Failed. The worst: ioi") and len(d["referee"]["controls"]) == 2
    assert page.index("The worst: ioi") < page.index("By layer") < page.index("Audit of circuit removed")
    assert "http://" not in page.replace("http://www.w3.org", "") and "nan" not in card.lower().replace("nanc", "")
    assert card.startswith("# Failed: circuit removed\n\nFailed. The worst: ioi")


def test_a_task_that_could_not_fail(toy):
    for task, says in (
        (TaskLimit(list_task, "correct", 0.99, n=30, options=dict(n_items=9)), "could not fail"),
        (("contrast", "chosen", 0.05), "cannot be measured"),
    ):
        with pytest.raises(TaskError, match=says):
            referee(toy, little(toy), plan=small, tasks=[task])
    with pytest.raises(UsageError):
        referee(toy, little(toy), plan=small, controls=-1)


def test_a_task_of_ones_own_is_a_rule(toy, circuit):
    own = TaskLimit(list_task, "correct", 0.05, n=40, options=dict(n_items=4))
    r = referee(toy, change_of_edit(circuit, toy), plan=small, tasks=[own], controls=0)
    assert "laundry_list (own)" in r.audit.failed and "No random changes" in r.sentences[-1]


def test_the_model_is_as_it_was_whatever_breaks(toy, circuit, monkeypatch):
    from talking_heads.edits import referee as R

    before = weights(toy)
    referee(toy, change_of_edit(circuit, toy), plan=small, controls=1)
    assert same(before, weights(toy))

    def broken(*args, **kw):
        raise RuntimeError("in the middle")

    monkeypatch.setattr(R, "compose", broken)
    with pytest.raises(RuntimeError):
        referee(toy, change_of_edit(circuit, toy), plan=small, controls=0)
    assert same(before, weights(toy))


# ---- the command


@pytest.fixture(scope="module")
def stored(toy, circuit, tmp_path_factory):
    "One change in every form that the command reads"
    d = tmp_path_factory.mktemp("changes")
    circuit.save(d / "edit")
    to_peft(circuit, toy, d / "lora")
    circuit.bake(toy, d / "baked")
    W = Parameters(toy)(bias)
    save_file({bias: W + 1e-4}, d / "little.safetensors")
    return d


def quick_look(monkeypatch):
    from talking_heads.edits import audit as A

    monkeypatch.setattr(A, "quick", small)


@pytest.mark.parametrize("form", ["edit", "lora", "baked"])
def test_every_form_is_judged_alike(stored, form, tmp_path, monkeypatch):
    quick_look(monkeypatch)
    r = tiny.called(th_audit, "toy", stored / form, "--out", tmp_path / "a", "--controls", "0", "--device", "cpu")
    assert r.returncode == 2 and "Failed. The worst: ioi" in r.stdout, r.stderr
    assert {f.name for f in (tmp_path / "a").iterdir() if f.name[0] != "."} == set(referee_files)


def test_exit_codes_and_own_tasks(stored, tmp_path, monkeypatch):
    quick_look(monkeypatch)
    call = lambda *args: tiny.called(
        th_audit, "toy", stored / "little.safetensors", "--out", tmp_path / "a", "--controls", "1", *args
    )
    sure = call("--budget", "ioi=0.2,lists=0.2", "--until-sure")
    assert sure.returncode == 0 and sure.stdout.count("Passed.") == 1, sure.stderr + sure.stdout
    harm = call("--budget", "lists=none", "--tasks", "ioi:correct:0.2", "--tasks", "laundry_list:top1:20%")
    assert harm.returncode in (0, 3) and "ioi (own)" in (tmp_path / "a" / "card.md").read_text()


@pytest.mark.parametrize(
    "args, says",
    [
        (("toy", "weights.bin"), "pickle"),
        (("toy", "nowhere/at/all"), "not a folder"),
        (("toy", "toy"), "changes nothing"),
        (("toy", "toy", "--budget", "klx=1"), "no limit 'klx'"),
        (("toy", "toy", "--how", "slow"), "look, quick or full"),
        (("toy", "toy", "--controls", "-2"), "0 or more"),
        (("toy", "toy", "--tasks", "orders.csv:correct"), "FILE|a file or a task"),
        (("toy", "toy", "--tasks", "gone.csv:correct:.1"), "gone.csv"),
        (("toy", "toy", "--seed", "-1"), "seed"),
        (("toy", "toy", "--device", "gpu"), "no device"),
        (("toy",), "required"),
    ],
)
def test_errors_are_paragraphs(args, says, tmp_path):
    r = tiny.called(th_audit, *args, "--out", tmp_path / "a")
    assert r.returncode == 1 and pd.Series([r.stderr]).str.contains(says)[0], r.stderr
    assert not (tmp_path / "a" / "audit.json").exists() and "Traceback" not in r.stderr


def test_other_models_are_refused(stored, toy, tmp_path):
    other = tiny.save("llama", tmp_path / "m")
    for form, says in (("edit", "another model"), ("lora", "no module"), ("baked", "no checkpoint"), ("x", "no param")):
        path = stored / (form if form != "x" else "little.safetensors")
        r = tiny.called(th_audit, other, path, "--out", tmp_path / "a")
        assert r.returncode == 1 and says in r.stderr, (form, r.stderr)


def test_folders_of_others_are_left_alone(stored, tmp_path):
    (tmp_path / "audit.html").write_text("mine")
    r = tiny.called(th_audit, "toy", stored / "edit", "--out", tmp_path)
    assert r.returncode == 1 and "did not write" in r.stderr and (tmp_path / "audit.html").read_text() == "mine"
    with folder_lock(tmp_path / "b", "another"):
        pass
    mark_folder(tmp_path / "c", "paper run")
    r = tiny.called(th_audit, "toy", stored / "edit", "--out", tmp_path / "c")
    assert r.returncode == 1 and "holds a paper run" in r.stderr
