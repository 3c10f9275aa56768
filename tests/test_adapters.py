"Exports read back by plain peft and plain transformers, on every family; cards; refusals"

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import tiny
from tiny import far, plain, same, state
from talking_heads.edits.adapters import *
from talking_heads.base.checkpoints import find_checkpoint
from talking_heads.base.core import *
from talking_heads.hooks import *
from talking_heads.interventions import *

peft = pytest.importorskip("peft")
after_norm = ("gemma2", "gemma3", "olmo2")


def tokens(vocab=60):
    return torch.randint(3, vocab, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=tiny.families)
def made(request, tmp_path_factory):
    "A model, an edit of several heads and layers with unequal ranks, and the logits it should give"
    folder = tiny.save(request.param, tmp_path_factory.mktemp(request.param) / "model")
    model = load_model(str(folder), device="cpu")
    processing = "raw" if request.param in after_norm else "folded"
    edit = component_edit(model, {"1.0.0": 0, "1.0.3": 2.0, "1.3.1": -1, "2.1.0": 0}, processing)
    edit += subspace_edit(
        model,
        "0.2",
        torch.linalg.qr(torch.randn(48, 2, generator=torch.Generator().manual_seed(1)))[0].T,
        [[0, 1.0], [2.0, 0.5]],
    )
    with torch.no_grad(), edited(model, edit):
        want = model(tokens())
    return folder, model, edit, want


@torch.no_grad()
def test_peft_reads_the_adapter(made, tmp_path):
    folder, model, edit, want = made
    before, base = state(model), plain(folder)
    clean = base(tokens()).logits
    adapted = peft.PeftModel.from_pretrained(base, str(to_peft(edit, model, tmp_path / "a")))
    assert far(adapted(tokens()).logits, want) < 1e-4 < far(clean, want)
    with adapted.disable_adapter():
        assert far(adapted(tokens()).logits, clean) < 1e-5
    touched = {n.split(".base_layer")[0] for n, _ in adapted.named_modules() if n.endswith("base_layer")}
    assert len(touched) == 3 and not any("mlp" in n for n in touched)
    assert far(adapted.merge_and_unload()(tokens()).logits, want) < 1e-4
    assert same(state(model), before)


@torch.no_grad()
def test_plain_transformers_read_the_baked_model(made, tmp_path):
    folder, model, edit, want = made
    before, rng = state(model), torch.get_rng_state()
    out = edit.bake(model, tmp_path / "b")
    assert torch.equal(torch.get_rng_state(), rng) and same(state(model), before)
    assert far(plain(out)(tokens()).logits, want) < 1e-4
    ours = load_model(str(out), device="cpu")
    assert far(ours(tokens()), want) < 1e-4 and ours.cfg.default_prepend_bos == model.cfg.default_prepend_bos
    assert (
        AutoTokenizer.from_pretrained(out)("Then Mary and John").input_ids
        == AutoTokenizer.from_pretrained(folder)("Then Mary and John").input_ids
    )
    assert "generation_config.json" in {p.name for p in out.iterdir()}
    assert str(folder.parent) not in "".join(p.read_text() for p in [*out.rglob("*.json"), out / "README.md"])
    with pytest.raises(EditError, match="not those"):
        edit.apply(ours)  # it is edited already


def test_factors_are_the_difference_of_weights(made):
    _, model, edit, _ = made
    W = [b.attn.W_O.detach().double() for b in model.blocks]
    with edited(model, edit):
        D = [b.attn.W_O.detach().double() - w for b, w in zip(model.blocks, W)]
    for name, (A, B) in lora_factors(edit, model).items():
        layer = next(int(x) for x in name.split(".") if x.isdigit())
        torch.testing.assert_close((B.double() @ A.double()).T.reshape(D[layer].shape), D[layer], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_other_active_edits_are_left_out(made, tmp_path):
    _, model, edit, want = made
    with edited(model, edit.scaled(-2)):
        now = state(model)
        adapter, out = to_peft(edit, model, tmp_path / "a"), bake(edit, model, tmp_path / "b")
        assert same(state(model), now)
    assert far(plain(out)(tokens()).logits, want) < 1e-4
    assert (adapter / "adapter_model.safetensors").read_bytes() == (
        to_peft(edit, model, tmp_path / "c") / "adapter_model.safetensors"
    ).read_bytes()


def test_refused_on_another_model(made, tmp_path):
    _, model, edit, _ = made
    other = load_model("toy", device="cpu")
    for export in (to_peft, bake):
        with pytest.raises(EditError, match="another model"):
            export(edit, other, tmp_path / "never")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def toy():
    return load_model("toy", device="cpu")


def test_a_folder_of_others_is_left_alone(toy, tmp_path):
    edit, theirs = component_edit(toy, "1.0.0"), tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    for export in (to_peft, bake):
        with pytest.raises(OutputError, match="no export of ours"):
            export(edit, toy, theirs)
    assert [p.name for p in tmp_path.iterdir()] == ["theirs"] and [p.name for p in theirs.iterdir()] == ["thesis.txt"]
    with pytest.raises(OutputError):
        to_peft(edit, toy, theirs / "thesis.txt")


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_earlier_export_survives_a_failing_one(toy, tmp_path, monkeypatch, error):
    from talking_heads.edits import adapters

    first = component_edit(toy, "1.0.0")
    to_peft(first, toy, tmp_path / "x")
    rename = Path.rename

    def failing(self, to):
        if Path(to) == tmp_path / "x" and not self.name.endswith(".old"):
            raise error("stopped")
        return rename(self, to)

    monkeypatch.setattr(adapters.Path, "rename", failing)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        to_peft(component_edit(toy, "1.1.0"), toy, tmp_path / "x")
    monkeypatch.undo()
    assert load_edit(tmp_path / "x" / "edit", toy) == first and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_an_earlier_export_is_replaced_whole(toy, tmp_path):
    bake(component_edit(toy, "1.0.0"), toy, tmp_path / "x")
    edit = component_edit(toy, "1.1.0")
    to_peft(edit, toy, tmp_path / "x")
    assert {p.name for p in (tmp_path / "x").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "edit",
    }
    assert load_edit(tmp_path / "x" / "edit", toy) == edit


def test_a_failed_export_leaves_nothing(toy, tmp_path, monkeypatch):
    import talking_heads.edits.adapters as A

    def fail(*args):
        raise RuntimeError("no card today")

    monkeypatch.setattr(A, "model_card", fail)
    for export in (to_peft, bake):
        with pytest.raises(RuntimeError):
            export(component_edit(toy, "1.0.0"), toy, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@torch.no_grad()
def test_a_gain_of_zero_baked_in_is_a_component_less(tmp_path):
    "The baked model has no such direction any more, which is said; edits of the others fit it, and audits of it run"
    from talking_heads.edits.audit import AuditPlan, audit

    model = load_model(str(tiny.save("llama", tmp_path / "m")), device="cpu")
    rank = model.cfg.d_head
    baked = load_model(str(bake(component_edit(model, "1.0.0", "raw"), model, tmp_path / "b")), device="cpu")
    with pytest.raises(EditError, match=f"writes {rank - 1} directions"):
        component_edit(baked, f"1.0.{rank - 1}", "raw")
    edit = component_edit(baked, {"1.0.0": 0.0, "1.1.0": 2.0}, "raw")
    with edited(baked, edit):
        want = baked(tokens())
    assert far(plain(bake(edit, baked, tmp_path / "c"))(tokens()).logits, want) < 1e-4
    a = audit(baked, edit, plan=AuditPlan(text=1, ioi=30, lists=(2,), per_template=3, contrast=(), induction=2))
    assert "kl" in a.untested and a.verdicts.rule.is_unique


@pytest.mark.parametrize("form, how", [("adapter", "disable_adapter"), ("checkpoint", "Load the base model instead")])
def test_the_card_says_what_was_done(toy, form, how):
    edit = component_edit(toy, {"1.0.0": 0, "2.3.4": 1.75}, name="louder & quieter")
    bare = model_card(edit, toy, form)
    for text in (
        "louder & quieter",
        "2.3.4",
        "1.75",
        edit.sha256,
        toy.checkpoint.sha256,
        *edit.target["heads"].values(),
        "Licence",
        "## Load",
        "## Undo",
        how,
    ):
        assert text in bare
    assert bare.count("Not measured.") == 2
    full = model_card(
        edit,
        toy,
        form,
        dict(
            does={"accuracy": dict(mean=0.75, low=0.7, high=0.8, n=200)},
            costs={"KL": 0.0123, "other tasks": None},
            on="ioi",
        ),
    )
    assert "Not measured." not in full
    for text in (
        "0.75 (95% 0.7 to 0.8, n = 200)",
        "| KL | 0.0123 |",
        "| other tasks | not measured |",
        "Measured on: ioi",
    ):
        assert text in full


def test_the_card_can_be_followed(toy, tmp_path):
    "The code in a card, run as it stands"
    edit = component_edit(toy, {"1.0.0": 0})
    for export in (to_peft, bake):
        out = export(edit, toy, tmp_path / export.__name__)
        code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0].replace("this folder", str(out))
        names = {}
        exec(code, names)
        with torch.no_grad():
            with edited(toy, edit):
                want = toy(tokens())
            assert far(names["model"].eval()(tokens()).logits, want) < 1e-4


def test_the_config_names_every_module(toy, tmp_path):
    config = json.loads(
        (
            to_peft(component_edit(toy, {"1.0.0": 0, "1.1.1": 2.0, "2.0.0": 0}), toy, tmp_path / "a")
            / "adapter_config.json"
        ).read_text()
    )
    assert (
        config["target_modules"] == ["transformer.h.1.attn.c_proj", "transformer.h.2.attn.c_proj"]
        and config["fan_in_fan_out"]
    )
    assert (
        config["rank_pattern"]
        == config["alpha_pattern"]
        == {"transformer.h.1.attn.c_proj": 2, "transformer.h.2.attn.c_proj": 1}
    )


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_baked_and_adapted(tmp_path):
    model, ids = load_model("smollm2", device="cpu"), tokens(40000)
    edit = component_edit(model, {"20.0.0": 0, "19.2.0": 2.0, "20.3.5": 0.5})
    with edited(model, edit):
        want = model(ids)
    out = bake(edit, model, tmp_path / "b")
    assert far(plain(out)(ids).logits, want) < 1e-4 < far(model(ids), want)
    assert far(load_model(str(out), device="cpu")(ids), want) < 1e-4
    base = plain(find_checkpoint("smollm2").path)
    assert far(peft.PeftModel.from_pretrained(base, str(to_peft(edit, model, tmp_path / "a")))(ids).logits, want) < 1e-4
