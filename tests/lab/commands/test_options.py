"""Losses given as text: every one is what its text says, has one name, and works, or is refused before any training."""

import re
from dataclasses import replace

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cyclofocal.lab.bench.candidates import user_candidate
from cyclofocal.lab.commands import _MainCommands, app
from cyclofocal.lab.commands.compare import default_losses, primary_of, training_counts
from cyclofocal.lab.commands.options import losses_of, trained_losses
from cyclofocal.lab.compare.grid import grid, try_custom_losses
from cyclofocal.lab.oltr.recipes import fashion_mnist_open
from cyclofocal.lab.recipes.criterion import build_criterion
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.loss import CYCLICAL, FOR_BALANCED, FOR_IMBALANCED, LOSSES
from cyclofocal.lab.recipes.parse_losses import SCALE_SETTING, SETTINGS
from cyclofocal.lab.recipes.resolve import resolve_recipes
from cyclofocal.lab.recipes.settings import settings_of, with_settings
from cyclofocal.lab.recipes.tabular import table_recipe
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.train import train

OWN = """
import torch
from torch import nn
import torch.nn.functional as F

def loss(logits, target):
    return F.cross_entropy(logits, target)

class Clocked(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("told", torch.zeros(()))
    def set_progress(self, progress):
        self.told.fill_(progress)
    def forward(self, logits, target):
        return (1 + self.told) * F.cross_entropy(logits, target)

ready = Clocked()
number = 3
class Needs(Clocked):
    def __init__(self, size):
        super().__init__()
class Learnt(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
def vector(logits, target):
    return F.cross_entropy(logits, target, reduction="none")
def plain(logits, target):
    return 1.0
def still(logits, target):
    return torch.ones(())
def nan(logits, target):
    return logits.sum() / 0 * 0
def broken(logits, target):
    raise RuntimeError("no such luck")
def of_three_classes(logits, target):
    return F.cross_entropy(logits, target, weight=torch.ones(3))
def of_ten_classes(logits, target):
    return F.cross_entropy(logits, target, weight=torch.arange(1.0, 11.0))
class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("log_prior", torch.linspace(1, 0.02, 10).log())
    def forward(self, logits, target):
        return F.cross_entropy(logits + self.log_prior, target)
class Prior(nn.Module):
    def __init__(self, class_counts):
        super().__init__()
        self.register_buffer("log_counts", class_counts.float().log())
    def forward(self, logits, target):
        return F.cross_entropy(logits + self.log_counts, target)
def prior(logits, target, class_counts):
    assert class_counts.sum() > 100  # those of the experiment
    return F.cross_entropy(logits + class_counts.log(), target)
def indices_only(logits, target):
    return F.nll_loss(logits.log_softmax(1), target.long() if target.ndim == 1 else target)
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "my_loss.py").write_text(OWN)
    return tmp_path / "my_loss.py"


def spelled(name, values):
    return f"{name}:" + ",".join(f"{setting}={value}" for setting, value in values.items()) if values else name


values = {name: st.floats(0, 3, width=32) for name in ("gamma_pos", "gamma_neg", "gamma_hc")} | {
    "cyclical_factor": st.floats(1, 8, width=32),
    "label_smoothing": st.floats(0, 1, width=32),
    SCALE_SETTING: st.floats(0.125, 4, width=32),
    "tau": st.floats(0, 3, width=32),
    "class_weight": st.sampled_from(["balanced", "sqrt", "effective"]),
    "weight_start": st.floats(0, 1, width=32),
    "sampler": st.just("balanced"),
    "max_margin": st.floats(0, 1, width=32),
    "vs_gamma": st.floats(0, 1, width=32),
    "smoothing_odds": st.floats(2, 99, width=32),
}


@given(st.data())
def test_settings_are_those_of_the_text(data):
    chosen = data.draw(st.lists(st.sampled_from(LOSSES), min_size=1, unique=True))
    expected, text = [], []
    for loss in chosen:
        allowed = [*SETTINGS[loss.name], SCALE_SETTING]
        some = data.draw(st.permutations(data.draw(st.lists(st.sampled_from(allowed), unique=True))))
        given_values = {name: data.draw(values[name]) for name in some}
        if not (given_values.get("class_weight") or loss.class_weight):
            given_values.pop("weight_start", None)  # refused without weights
        if any(given_values.get(name, getattr(loss, name)) for name in ("tau", "class_weight")):
            given_values.pop("sampler", None)  # refused with what corrects for frequencies too
        if not given_values.get("tau", loss.tau) or given_values.get("label_smoothing"):
            given_values.pop("smoothing_odds", None)  # refused
        text.append(spelled(loss.name, given_values))
        smoothing = {"label_smoothing": 0.0} if "smoothing_odds" in given_values else {}
        expected.append(replace(loss, **(smoothing | given_values)))
    if len({replace(loss, name="", title="") for loss in expected}) < len(expected):
        return  # refused, see below
    found = losses_of(",".join(text))
    assert [replace(loss, name="", title="") for loss in found] == [replace(e, name="", title="") for e in expected]
    assert losses_of(",".join(loss.name for loss in found)) == found


def test_names_are_spelled_out_in_one_way():
    (loss,) = losses_of("cyclical: cyclical_factor=4.0 , gamma_hc=2")
    assert loss.name == "cyclical:gamma_hc=2,cyclical_factor=4"
    assert loss.title == "cyclical focal (gamma_hc 2, cyclical_factor 4)"
    assert losses_of("ce,cyclical") == [LOSSES[0], CYCLICAL]
    assert trained_losses("ce,cyclical:gamma_hc=2") == losses_of("ce,cyclical:gamma_hc=2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "cyclicl",
            "'cyclicl' is not a loss; allowed: ce, smoothed, focal, asymmetric, cyclical, weighted, logit-adjusted,",
        ),
        ("cyclicl", "Did you mean 'cyclical'?"),
        ("ce,,focal", "'' is not a loss"),
        ("gamma_hc=2", "'gamma_hc=2' is not a loss"),
        ("cyclical:gama_hc=2", "Did you mean 'gamma_hc'?"),
        (
            "ce:gamma_hc=2",
            "'gamma_hc' is not a setting of ce; allowed: tau, smoothing_odds, class_weight, weight_start, sampler,",
        ),
        ("cyclical:gamma_hc", "it must be cyclical:SETTING=NUMBER"),
        ("cyclical:", "it must be cyclical:SETTING=NUMBER"),
        ("ce:tau=-1", "tau is -1.0; it must be at least 0"),
        ("ce:tau=inf", "tau is inf; it must be finite"),
        ("ce:class_weight=balancd", "Did you mean 'balanced'?"),
        ("ce:weight_start=0.8", "weight_start is 0.8, but there is no weight"),
        ("weighted:class_weight=none,weight_start=0.5", "there is no weight"),
        ("vs:vs_gamma=-1", "vs_gamma is -1.0; it must be at least 0"),
        ("ce:smoothing_odds=9", "smoothing_odds is 9 and tau 0; it depends on the prior: give tau=1"),
        ("ce:smoothing_odds=1,tau=1", "smoothing_odds is 1.0; it must be greater than 1"),
        ("logit-adjusted:label_smoothing=0.1,smoothing_odds=9", "smoothing_odds sets it; leave one out"),
        ("ldam-drw:max_margin=nan", "max_margin is nan; it must be at least 0"),
        ("balanced-softmax,logit-adjusted", "are the same loss; give one of them"),
        ("cyclical:gamma_hc=two", "gamma_hc of cyclical is 'two'; it must be a number"),
        ("cyclical:gamma_hc=-1", "gamma_hc is -1.0; it must be a finite number >= 0"),
        ("cyclical:gamma_hc=nan", "gamma_hc is nan"),
        ("cyclical:cyclical_factor=0.5", "cyclical_factor is 0.5"),
        ("smoothed:label_smoothing=2", "label_smoothing is 2.0; it must lie in [0, 1]"),
        ("ce:learning_rate_scale=0", "learning_rate_scale of ce is 0.0; it must be greater than 0, and finite"),
        ("cyclical:gamma_hc=2,gamma_hc=3", "gamma_hc of cyclical is given twice"),
        ("ce,focal,ce", "'ce' is given twice"),
        ("cyclical:gamma_hc=2,cyclical:gamma_hc=2.0", "'cyclical:gamma_hc=2' is given twice"),
        ("cyclical,cyclical:gamma_hc=3", "'cyclical:gamma_hc=3' and 'cyclical' are the same loss"),
    ],
)
def test_wrong_settings_are_refused_with_the_remedy(text, words):
    with pytest.raises(typer.BadParameter, match=re.escape(words)):
        losses_of(text)


@pytest.mark.parametrize("name", ["loss", "Clocked", "ready"])
def test_a_custom_loss_is_called_as_it_is(file, name):
    ce, own = losses_of(f"ce,{file}:{name}")
    assert (own.name, own.title, own.file) == (name, f"{name} ({file}:{name})", f"{file}:{name}")
    logits, target = torch.randn(5, 4), torch.arange(5) % 4
    torch.testing.assert_close(
        build_criterion(own, [1] * 10)(logits, target), build_criterion(ce, [1] * 10)(logits, target)
    )


def test_names_of_custom_losses_and_their_learning_rate(file):
    mine, other, focal = losses_of(f"mine={file}:loss,{SCALE_SETTING}=0.5,other={file}:Clocked,focal:gamma_pos=1")
    assert (mine.name, mine.learning_rate_scale) == (f"mine:{SCALE_SETTING}=0.5", 0.5)
    assert (other.name, focal.gamma_pos) == ("other", 1.0)


def test_a_file_with_one_loss_needs_no_function_name(tmp_path):
    (tmp_path / "one.py").write_text(
        "from torch.nn.functional import cross_entropy as _ce\ndef only(x, y): return _ce(x, y)"
    )
    named, unnamed = losses_of(f"{tmp_path}/one.py:only"), losses_of(f"{tmp_path}/one.py")
    assert named == unnamed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("FILE", "does not say which function of the file"),
        ("mine=FILE", "does not say which function of the file"),
        ("ce=FILE:loss", "'ce' is the name of a built-in loss"),
        ("a b=FILE:loss", "'a b' is not letters, digits"),
        ("FILE:loss,FILE:loss", "'loss' is given twice"),
        ("FILE:loss,mine=FILE:loss", "are the same loss"),
        ("FILE:loss,gamma_hc=2", "'gamma_hc' is not a setting of loss; allowed: sampler, learning_rate_scale"),
        ("FILE:los", "it has no 'los'; it has"),
        ("FILE:number", "it is of type int; it must be a function or a torch module"),
        ("FILE:Needs", "the class cannot be made without arguments other than class_counts (TypeError"),
        ("FILE:Learnt", "it has weights (scale), which nothing would train"),
    ],
)
def test_errors_of_a_custom_loss_name_its_file(file, text, words):
    with pytest.raises(typer.BadParameter, match=re.escape(words)) as raised:
        losses_of(text.replace("FILE", str(file)))
    assert str(file) in str(raised.value) or any(word in words for word in ("twice", "same", "setting"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vector", "it returns a tensor (8,); it must return one number"),
        ("plain", "it returns float; it must return one number as a tensor"),
        ("still", "its result has no gradient"),
        ("nan", "it returns nan for ordinary logits; it must be finite"),
        ("broken", "it raises RuntimeError: no such luck"),
        ("of_three_classes", "called with logits (N, 10) and class indices (N,) it raises RuntimeError: weight tensor"),
    ],
)
def test_a_custom_loss_is_called_before_training(file, tmp_path, name, words):
    losses = losses_of(f"ce,{file}:{name}")
    with pytest.raises(ValueError, match=re.escape(f"{file}:{name}: ") + ".*" + re.escape(words)):
        try_custom_losses(grid([digits()], losses, [0], tmp_path))
    for command in (
        ("compare", "digits", "--losses"),
        ("train", "digits", "--loss"),
        ("reproduce", "digits", "--loss"),
    ):
        given = f"ce,{file}:{name}" if command[0] != "train" else f"{file}:{name}"
        result = CliRunner().invoke(app, [*command, given, "--out", str(tmp_path / "runs")], env={"COLUMNS": "400"})
        assert result.exit_code in (1, 2)
        assert words in " ".join(result.output.replace("│", " ").split())
    assert not list(tmp_path.rglob("record.jsonl"))


@pytest.mark.parametrize("name", ["of_ten_classes", "Counted", "Prior", "prior"])
def test_a_custom_loss_may_have_a_weight_per_class(file, name):
    (own,) = losses_of(f"{file}:{name}")
    recipe = replace(digits(), epochs=1, warmup_epochs=0, model="mlp", width=4)
    assert train(Job(recipe, own, 0, options=RunOptions(cpu=True))).loss["file"] == f"{file}:{name}"


def test_a_custom_loss_with_counts_is_the_balanced_softmax(file):
    recipe = replace(digits(), epochs=2, warmup_epochs=0, model="mlp", width=4)
    losses = losses_of(f"balanced-softmax,{file}:Prior,{file}:prior")
    runs = [train(Job(recipe, loss, 0, options=RunOptions(cpu=True))) for loss in losses]
    for run in runs[1:]:
        assert run.epochs[-1]["train_loss"] == pytest.approx(runs[0].epochs[-1]["train_loss"], rel=1e-4)


def test_a_benchmark_has_no_class_counts_to_give(file):
    with pytest.raises(ValueError, match="it asks for class_counts, which only a training has"):
        user_candidate(f"{file}:Prior")


def test_default_losses_follow_from_the_imbalance(tmp_path):
    tailed = digits()
    for imbalance, expected in ((50.0, FOR_IMBALANCED), (3.5, FOR_IMBALANCED), (2.5, FOR_BALANCED)):
        recipe = tailed.with_data(imbalance=imbalance)
        assert tuple(default_losses(training_counts([recipe], tmp_path))) == expected
    both = training_counts([tailed.with_data(imbalance=1.0), tailed], tmp_path)
    assert tuple(default_losses(both)) == FOR_IMBALANCED


def test_the_default_metric_follows_from_the_classes(tmp_path):
    rows = [f"{i % 7},{'yes' if i % 3 else 'no'}" for i in range(60)]
    (tmp_path / "people.csv").write_text("\n".join(["a,kind", *rows]))
    two, ten = table_recipe(str(tmp_path / "people.csv"), "kind"), digits()
    for recipes, expected in (([two], "macro_auroc"), ([ten, two], "macro_auroc"), ([ten], "balanced_accuracy")):
        assert primary_of("", training_counts(recipes, tmp_path)) == expected
    assert primary_of("nll", []) == "nll"
    assert primary_of("tuned_f1", training_counts([two], tmp_path)) == "tuned_f1"
    with pytest.raises(typer.BadParameter, match="tuned_f1 is a metric of two classes, and an experiment has 10"):
        primary_of("tuned_f1", training_counts([two, ten], tmp_path))


def test_files_that_are_not_there_or_not_python(tmp_path):
    with pytest.raises(typer.BadParameter, match=re.escape(f"{tmp_path}/none.py: no such file")):
        losses_of(f"{tmp_path}/none.py:loss")
    (tmp_path / "bad.py").write_text("def loss(:")
    with pytest.raises(typer.BadParameter, match=r"bad.py: it cannot be imported \(SyntaxError"):
        losses_of(f"{tmp_path}/bad.py:loss")


def test_a_changed_file_is_another_loss(file):
    (before,) = losses_of(f"{file}:loss")
    file.write_text(OWN + "\n")
    (after,) = losses_of(f"{file}:loss")
    assert before.digest != after.digest
    with pytest.raises(ValueError, match="its content has changed"):
        build_criterion(before, [1] * 10)


def test_a_custom_loss_gets_the_progress_and_resumes(file, tmp_path):
    recipe = replace(digits(), epochs=3, warmup_epochs=0, model="mlp", width=4)
    ce, own = losses_of(f"ce,{file}:Clocked")
    records = [train(Job(recipe, loss, 0, tmp_path / loss.name, RunOptions(cpu=True))) for loss in (ce, own)]
    first, last = (records[1].epochs[epoch]["train_loss"] / records[0].epochs[epoch]["train_loss"] for epoch in (0, -1))
    assert first == pytest.approx(1, abs=1e-5)
    assert last > 1.5
    folder = tmp_path / "Clocked"
    (folder / "record.jsonl").unlink()
    sorted(folder.glob("checkpoint-*.pt"))[-1].unlink()
    assert train(Job(recipe, own, 0, folder, RunOptions(cpu=True))).metrics == records[1].metrics


def test_mixup_refuses_a_custom_loss_without_soft_targets(file):
    (own,) = losses_of(f"{file}:indices_only")
    with pytest.raises(
        ValueError, match=r"my_loss\.py:indices_only: called with logits .* probabilities .* it raises RuntimeError"
    ):
        train(Job(replace(digits(), mixup=0.2, epochs=1), own, 0, options=RunOptions(cpu=True)))


@pytest.mark.parametrize(
    ("what", "target", "words"),
    [
        ("digts", "", "'digts' is no recipe, file or folder; .* Did you mean 'digits'?"),
        ("digits", "label", "target is 'label', but digits is no table"),
        ("none.csv", "label", "none.csv: no such file"),
        ("none.csv", "", "none.csv: no such file"),
    ],
)
def test_unknown_experiments_are_refused(what, target, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        resolve_recipes(what, target)


def test_a_mistyped_path_is_refused_with_the_nearest(tmp_path):
    (tmp_path / "people.csv").touch()
    (tmp_path / "flowers").mkdir()
    with pytest.raises(FileNotFoundError, match=r"peopel.csv: no such file. Did you mean '.*people.csv'"):
        resolve_recipes(str(tmp_path / "peopel.csv"), "label")
    with pytest.raises(ValueError, match=r"Did you mean '.*flowers'"):
        resolve_recipes(str(tmp_path / "flwers"))


@pytest.mark.parametrize(
    ("command", "recipes"),
    [
        ("compare digits", [digits()]),
        ("train digits", [digits()]),
        ("reproduce fashion-mnist-open", [fashion_mnist_open().first, fashion_mnist_open().second]),
    ],
)
def test_all_fields_can_be_listed_and_given_back(command, recipes):
    found = CliRunner().invoke(app, [*command.split(), "--set", "fields="])
    assert (found.exit_code, found.stderr) == (0, "")
    settings = [line.strip() for line in found.stdout.splitlines() if line.startswith("  ")]
    assert settings == [setting for recipe in recipes for setting in settings_of(recipe)]
    for recipe in recipes:
        back = [setting for setting in settings_of(recipe) if setting != "groups=digits"]
        assert with_settings(recipe, back) == recipe


def test_names_and_paths_resolve_to_experiments(tmp_path):
    assert resolve_recipes("digits") == [digits()]
    assert [recipe.data.source for recipe in resolve_recipes(str(tmp_path))] == [str(tmp_path)]
    table = tmp_path / "people.csv"
    table.write_text("age,label\n" + "".join(f"{i % 7},{'ab'[i % 2]}\n" for i in range(40)))
    (recipe,) = resolve_recipes(str(table), "label")
    assert (recipe.name, recipe.data.flat()["target"], recipe.model) == ("people", "label", "mlp")
    for source, name in (("Sea birds", "Sea-birds"), ("v1.2", "v1.2"), ("digits", "digits")):
        (tmp_path / source).mkdir()
        assert [recipe.name for recipe in resolve_recipes(str(tmp_path / source))] == [name]
    with pytest.raises(ValueError, match="name the column to predict"):
        resolve_recipes(str(table))
    with pytest.raises(ValueError, match="Did you mean 'label'"):
        resolve_recipes(str(table), "lable")


@pytest.mark.parametrize("command", ["", *_MainCommands.places, "data check"])
def test_help_cuts_nothing_in_a_narrow_terminal(command):
    said = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "80"})
    assert said.exit_code == 0
    assert "\N{HORIZONTAL ELLIPSIS}" not in said.output
    if not command:
        assert "..." not in said.output.replace("[ARGS]...", "")
    if command == "compare":
        words = " ".join(said.output.split())
        assert "ce, smoothed, focal, asymmetric, cyclical, weighted, logit-" in words
