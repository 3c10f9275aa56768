"What a model is called: its own name, never a path, in results, scores, edits and pages"

import json

import nbformat
import pytest
from hypothesis import given, settings, strategies as st

import tiny
from talking_heads.edits.adapters import _base
from talking_heads.paper.brief import brief
from talking_heads.base.checkpoints import *
from talking_heads.composition import provenance_of
from talking_heads.hooks import load_model
from talking_heads.interventions import component_edit
from talking_heads.paper.report import to_html
from talking_heads.svd import attention_weights

import made_results as made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save("gpt2", tmp_path_factory.mktemp("a") / "hf")


def called(folder, **config):
    "The folder's display name after `config` went into its config.json"
    old = (folder / "config.json").read_text()
    (folder / "config.json").write_text(json.dumps(json.loads(old) | config))
    try:
        return display_name(find_checkpoint(str(folder)))
    finally:
        (folder / "config.json").write_text(old)


def test_the_config_comes_before_the_folder(folder, tmp_path):
    sha = find_checkpoint(str(folder)).sha256
    assert called(folder) == f"gpt2-{sha[:8]}"  # `hf` and no name in the config
    assert called(folder, _name_or_path="somebody/tiny-gpt2") == "tiny-gpt2"
    for path in (
        "/home/somebody/tiny",
        "../tiny",
        "C:\\models\\tiny",
        "~/tiny",
        str(folder),
        "checkpoint-500",
        "0" * 40,
    ):
        assert called(folder, _name_or_path=path) == f"gpt2-{sha[:8]}", path
    own = tmp_path / "tiny-orders-v2"
    own.symlink_to(folder)
    assert display_name(Checkpoint(str(own), own, "local", sha)) == "tiny-orders-v2"
    assert display_name(Checkpoint(str(own), own, "local", sha), "gemma-3-270m") == "gemma-3-270m"


def test_embedded_and_hub_names_stay():
    assert display_name(find_checkpoint("toy")) == "toy"
    assert (
        display_name(Checkpoint("EleutherAI/pythia-160m", None, "hub", "ab" * 32, "0" * 40)) == "EleutherAI/pythia-160m"
    )


def test_everything_calls_it_alike(folder):
    model, want = load_model(str(folder), device="cpu"), called(folder)
    edit = component_edit(model, "1.0.0")
    assert edit.info["model"] == _base(model) == want
    assert (
        provenance_of(attention_weights(str(folder)))["model"]
        == provenance_of(attention_weights(model))["model"]
        == want
    )
    assert str(folder.parent) not in json.dumps(edit.info)


@given(st.text("abcxyz019._-/\\~ :", max_size=20))
@settings(deadline=None)
def test_no_name_is_a_path(name):
    shown = plain_name(f"/home/somebody/{name}", "ab12cd34" * 8)
    assert "/" not in shown and "\\" not in shown and shown and not shown.startswith("~")


def test_pages_hold_no_path(tmp_path):
    source = "model = '/home/somebody/models/hf'\nout = 'C:\\\\Users\\\\me\\\\runs'\nseed = 0\nname = 'mine'"
    cell = nbformat.v4.new_code_cell(source, metadata=dict(tags=["parameters"]))
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    page = to_html(tmp_path / "n.ipynb", tmp_path / "n.html", "A run").read_text()
    assert "somebody" not in page and "Users" not in page and "runs" in page and "mine" in page
    assert brief(made.complete("/home/somebody/models/hf")).title.startswith("model-ab12ab12")
