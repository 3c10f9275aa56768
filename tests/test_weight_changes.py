"Changes of weights: read back exactly on every family, refused with a reason, undone to the last bit"

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from tiny import far, plain, same, state
from talking_heads.base.core import *
from talking_heads.edits.adapters import *
from talking_heads.edits.weight_changes import *
from talking_heads.hooks import *
from talking_heads.interventions import *


def tokens(vocab=60):
    return torch.randint(3, vocab, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=tiny.families)
def made(request, tmp_path_factory):
    folder = tiny.save(request.param, tmp_path_factory.mktemp(request.param) / "model")
    return folder, load_model(str(folder), device="cpu")


def modules_of(kind, base):
    "Linear modules of the second layer: attention, packed or not, and the MLP"
    names = [n for n, m in base.named_modules() if hasattr(m, "weight") and m.weight.ndim == 2]
    return [n for n in names if ".1." in n]


def write_lora(folder, base, names, rank=2, alpha=6, rslora=False, seed=0, **config):
    "An adapter by the specification of LoRA, and the weights it stands for in float64"
    g, tensors, merged = torch.Generator().manual_seed(seed), {}, {}
    for n in names:
        W = base.get_submodule(n).weight
        conv = type(base.get_submodule(n)).__name__ == "Conv1D"
        rows, columns = reversed(W.shape) if conv else W.shape
        A, B = (torch.randn(*s, generator=g) * 0.2 for s in ((rank, columns), (rows, rank)))
        tensors[f"base_model.model.{n}.lora_A.weight"], tensors[f"base_model.model.{n}.lora_B.weight"] = A, B
        delta = (alpha / math.sqrt(rank) if rslora else alpha / rank) * (B.double() @ A.double())
        merged[n] = (W.double() + (delta.mT if conv else delta)).float()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    about = dict(peft_type="LORA", r=rank, lora_alpha=alpha, use_rslora=rslora, bias="none", target_modules=names)
    (folder / "adapter_config.json").write_text(json.dumps(about | config))
    return merged


@torch.no_grad()
@pytest.mark.parametrize("rslora", [False, True])
def test_a_lora_by_hand(made, tmp_path, rslora):
    "Every linear module of a layer, packed projections and grouped queries included"
    folder, model = made
    base, before = plain(folder), state(model)
    merged = write_lora(tmp_path / "a", base, modules_of(None, base), rslora=rslora)
    for n, W in merged.items():
        base.get_submodule(n).weight.copy_(W)
    change = read_change(tmp_path / "a", model)
    want, clean = base(tokens()).logits, model(tokens())
    with change.applied(model):
        assert far(model(tokens()), want) < 1e-4 < far(want, clean)
    assert same(state(model), before) and change.kind == "LoRA adapter"
    assert set(change.table("parameter")["rank"]) <= {1, 2} and set(change.heads) == set("QKVO")


@torch.no_grad()
def test_a_lora_by_peft(made, tmp_path):
    peft = pytest.importorskip("peft")
    folder, model = made
    base = plain(folder)
    names = modules_of(None, base)
    some = dict(rank_pattern={names[0].rsplit(".", 1)[1]: 3}, alpha_pattern={names[-1]: 1})
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=names, use_rslora=True, **some)
    trained = peft.get_peft_model(base, config)
    torch.manual_seed(1)
    for n, x in trained.named_parameters():
        if "lora_" in n:
            x.copy_(torch.randn_like(x) * 0.2)
    want = trained(tokens()).logits
    trained.save_pretrained(tmp_path / "a")
    with read_change(tmp_path / "a", model).applied(model):
        assert far(model(tokens()), want) < 1e-4
    assert far(model(tokens()), want) > 1e-2


@torch.no_grad()
def test_a_second_checkpoint_and_some_tensors(made, tmp_path):
    folder, model = made
    base, before = plain(folder), state(model)
    names = modules_of(None, base)[:2]
    for n in names:
        base.get_submodule(n).weight.mul_(1.1)
    base.save_pretrained(tmp_path / "b")
    for f in folder.iterdir():
        if not (tmp_path / "b" / f.name).exists():
            shutil.copy(f, tmp_path / "b")
    want = base(tokens()).logits
    save_file({f"{n}.weight": base.get_submodule(n).weight.clone() for n in names}, tmp_path / "some.safetensors")
    for path in (tmp_path / "b", tmp_path / "some.safetensors"):
        change = read_change(path, model)
        assert set(change.parts) == {f"{n}.weight" for n in names}
        assert change.table("parameter").relative.tolist() == pytest.approx([0.1, 0.1], rel=1e-4)
        with change.applied(model):
            assert far(model(tokens()), want) < 1e-4
    assert same(state(model), before)


@torch.no_grad()
def test_an_edit_of_every_family(made, tmp_path):
    folder, model = made
    edit = component_edit(model, {"1.0.0": 0, "1.3.1": -1, "2.1.0": 2.0}, "raw")
    with edited(model, edit):
        want = model(tokens())
    change = read_change(edit.save(tmp_path / "e"), model)
    with change.applied(model):
        assert far(model(tokens()), want) < 1e-4
    assert change.heads == {"O": [Head(1, 0), Head(1, 3), Head(2, 1)]}
    with edited(model, edit), pytest.raises(EditError, match="already carries"):
        change.applied(model).__enter__()


@torch.no_grad()
def test_controls_have_place_size_and_rank(made):
    folder, model = made
    name = next(n for n in Parameters(model).all_names() if "mlp" in n and n.endswith("weight"))
    edit = change_of_edit(component_edit(model, {"1.0.0": 0, "1.3.1": -1}, "raw"), model)
    D = torch.zeros_like(Parameters(model)(name))
    D[3:5] = 0.1
    for change in (edit, weight_change(model, {name: Added(D)})):
        for seed in (0, 1):
            control = random_change(change, model, seed)
            a, b = change.table("parameter"), control.table("parameter")
            assert b["size"].tolist() == pytest.approx(a["size"].tolist(), rel=1e-6)
            assert a["rank"].tolist() == b["rank"].tolist() and change.heads == control.heads
            before = state(model)
            with control.applied(model):
                assert not same(state(model), before)
            assert same(state(model), before)


# ---- what is refused


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tiny.save("llama", tmp_path_factory.mktemp("llama") / "model")
    return folder, load_model(str(folder), device="cpu")


@pytest.fixture
def lora(llama, tmp_path):
    base = plain(llama[0])
    write_lora(tmp_path / "a", base, ["model.layers.1.self_attn.q_proj"])
    return tmp_path / "a"


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(peft_type="IA3"), "type IA3"),
        (dict(use_dora=True), "DoRA"),
        (dict(bias="lora_only"), "biases"),
        (dict(modules_to_save=["lm_head"]), "whole modules"),
        (dict(init_lora_weights="pissa"), "changes the base"),
        (dict(init_lora_weights="loftq"), "changes the base"),
        (dict(trainable_token_indices=[1, 2]), "embedding"),
        (dict(r=3), "rank 3"),
        (dict(r=0), "above 0"),
        (dict(lora_alpha="x"), "above 0"),
    ],
)
def test_what_is_no_plain_lora(llama, lora, change, says):
    f = lora / "adapter_config.json"
    f.write_text(json.dumps(json.loads(f.read_text()) | change))
    before = state(llama[1])
    with pytest.raises(TalkingHeadsError, match=says):
        read_change(lora, llama[1])
    assert same(before, state(llama[1]))


def rewrite(folder, f):
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(f(tensors), folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "f, says",
    [
        (lambda t: {k.replace("q_proj", "qq_proj"): x for k, x in t.items()}, "no module of this model"),
        (lambda t: {k: x[:, :5].contiguous() if "lora_A" in k else x for k, x in t.items()}, "another model"),
        (lambda t: {k: x * float("nan") for k, x in t.items()}, "NaN"),
        (lambda t: {k: x for k, x in t.items() if "lora_A" in k}, "one matrix"),
        (lambda t: t | {"base_model.model.lm_head.weight": torch.ones(2)}, "no matrix of a plain LoRA"),
        (lambda t: {k: x * 0 for k, x in t.items()}, "changes nothing"),
        (lambda t: {k: x.long() for k, x in t.items()}, "no weights"),
    ],
)
def test_adapters_that_do_not_fit(llama, lora, f, says):
    rewrite(lora, f)
    before = state(llama[1])
    with pytest.raises(EditError, match=says):
        read_change(lora, llama[1])
    assert same(before, state(llama[1]))


def test_a_tied_matrix_is_not_adapted_alone(tmp_path):
    "The output matrix of a model with tied embeddings is the input matrix too"
    folder = tiny.save("gpt2", tmp_path / "m")
    model = load_model(str(folder), device="cpu")
    write_lora(tmp_path / "a", plain(folder), ["lm_head"])
    with pytest.raises(EditError, match="would change both"):
        read_change(tmp_path / "a", model)
    untied = tiny.save("gpt2", tmp_path / "u", tie_word_embeddings=False)
    with pytest.raises(EditError, match="two matrices"):
        read_change(untied, model)


def test_pickles_broken_and_absent_files(llama, lora, tmp_path):
    model = llama[1]
    with pytest.raises(EditError, match="pickle"):
        read_change(tmp_path / "x.bin", model)
    (lora / "adapter_model.safetensors").rename(lora / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        read_change(lora, model)
    (lora / "adapter_model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CheckpointError, match="LFS"):
        read_change(lora, model)
    (lora / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="JSON"):
        read_change(lora, model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EditError, match="no edit, no adapter and no checkpoint"):
        read_change(tmp_path / "empty", model)
    with pytest.raises(ModelError, match="not a folder"):
        read_change(tmp_path / "nowhere", model)
    (tmp_path / "th_edit.json").write_text("{}")
    with pytest.raises(EditError, match="not kept"):
        read_change(tmp_path, model)


def test_tensors_that_do_not_fit(llama, tmp_path):
    model, f = llama[1], tmp_path / "t.safetensors"
    name = "model.layers.0.mlp.up_proj.weight"
    W = Parameters(model)(name).clone()
    for tensors, says in (
        ({"nothing.weight": W}, "no parameter of this model"),
        ({name: W.T.contiguous()}, "has shape"),
        ({name: W / 0}, "NaN or infinite"),
        ({name: W}, "changes nothing"),
        ({}, "no tensors"),
        ({name: W.long()}, "no weights"),
    ):
        save_file(tensors, f)
        with pytest.raises(EditError, match=says):
            read_change(f, model)


def test_other_checkpoints(llama, tmp_path):
    folder, model = llama
    wide = tiny.save("llama", tmp_path / "wide", hidden_size=96)
    with pytest.raises(EditError, match="has shape"):
        read_change(wide, model)
    deep = tiny.save("llama", tmp_path / "deep", num_hidden_layers=4)
    with pytest.raises(EditError, match="which the model lacks"):
        read_change(deep, model)
    short = tiny.save("llama", tmp_path / "short", num_hidden_layers=2)
    with pytest.raises(EditError, match="it lacks"):
        read_change(short, model)
    other = read_change(tiny.save("llama", tmp_path / "other", seed=5), model)
    assert any("differs in all" in n for n in other.notes) and "comparison goes on" in other.notes[0]
    with other.applied(model):
        assert torch.equal(Parameters(model)("model.norm.weight"), plain(tmp_path / "other").model.norm.weight)
    with pytest.raises(EditError, match="changes nothing"):
        read_change(folder, model)


@torch.no_grad()
def test_undone_whatever_happens(llama, lora, monkeypatch):
    from talking_heads.edits import weight_changes as W

    model = llama[1]
    change, before = read_change(lora, model), state(model)
    for error in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(error), change.applied(model):
            assert not same(before, state(model))
            raise error
        assert same(before, state(model))
    write = W._write
    two = weight_change(model, change.parts | {"model.norm.weight": Added(torch.ones(48))})

    def failing(params, name, x):
        write(params, name, x)
        if name == "model.norm.weight":
            raise RuntimeError("in the middle")

    monkeypatch.setattr(W, "_write", failing)
    with pytest.raises(RuntimeError), two.applied(model):
        pass
    assert same(before, state(model))


def test_another_models_change_is_refused(llama, lora, tmp_path):
    change = read_change(lora, llama[1])
    other = load_model(str(tiny.save("llama", tmp_path / "other", seed=3)), device="cpu")
    with pytest.raises(EditError, match="was read for"):
        change.applied(other).__enter__()


def test_the_table_sums_up(llama, lora):
    change = read_change(lora, llama[1])
    whole, heads, layers = change.table("parameter"), change.table("head"), change.table("layer")
    assert (heads["size"] ** 2).sum() == pytest.approx(float(whole["size"][0]) ** 2)
    assert layers.layer.tolist() == [1] and layers["size"][0] == pytest.approx(whole["size"][0])
    assert heads.part.tolist() == ["Q"] * 4 and change.sha256 == read_change(lora, llama[1]).sha256
    with pytest.raises(UsageError):
        change.table("colour")
