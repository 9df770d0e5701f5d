"""Promise: a printed constructor call makes the loss that the run was trained with."""

from dataclasses import asdict, replace

import pytest
import torch

import cyclofocal
from cyclofocal.lab.recipes.criterion import build_criterion
from cyclofocal.lab.recipes.loss import LDAM_DRW, LOSSES, VS
from cyclofocal.lab.recipes.parse_losses import SETTINGS, losses_in, spelled_loss
from cyclofocal.lab.report.constructors import chosen_settings, constructor_call, tuned_calls
from cyclofocal.lab.report.summary import summarise
from evidence import COUNTS, grid

USABLE = [loss for loss in LOSSES if loss not in (LDAM_DRW, VS)]
MORE = losses_in(
    "cyclical:tau=1.5,class_weight=effective,weight_start=0.5,ce:class_weight=sqrt,smoothed:tau=0.5,"
    "logit-adjusted:smoothing_odds=10,cyclical:tau=1,smoothing_odds=5"
)


@pytest.mark.filterwarnings("ignore:label_smoothing is")
@pytest.mark.parametrize("loss", [*USABLE, *MORE], ids=lambda loss: loss.name)
def test_the_call_makes_the_loss_of_the_run(loss):
    call = constructor_call(loss)
    made = eval(call, vars(cyclofocal) | {"torch": torch, "counts": COUNTS})
    logits, target = torch.randn(7, 3), torch.arange(7) % 3
    trained = build_criterion(loss, COUNTS)
    for progress in (0.0, 0.3, 0.9):
        for criterion in (made, trained):
            if hasattr(criterion, "set_progress"):
                criterion.set_progress(progress)
        torch.testing.assert_close(made(logits, target), trained(logits, target))


def test_a_loss_without_a_class_in_the_library_has_no_call():
    assert [constructor_call(loss) for loss in (LDAM_DRW, VS)] == ["", ""]


def test_chosen_settings_are_listed_with_their_seeds():
    by_seed = {0: 1.0, 1: 2.5, 2: 2.5, 3: 1.0, 4: 2.5}
    records = [
        replace(r, loss=r.loss | {"trials": 6, "gamma_neg": by_seed[r.seed], "learning_rate_scale": 2.0})
        if r.loss["name"] == "focal"
        else r
        for r in grid(5)
    ]
    summary = summarise(records)
    assert chosen_settings(summary, "focal") == [
        "FocalLoss(gamma_pos=2.0, gamma_neg=2.5)  # learning rate x 2, seeds 1, 2, 4:"
        " --loss focal:gamma_neg=2.5,learning_rate_scale=2",
        "FocalLoss(gamma_pos=2.0, gamma_neg=1.0)  # learning rate x 2, seeds 0, 3:"
        " --loss focal:gamma_neg=1,learning_rate_scale=2",
    ]
    assert chosen_settings(summary, "cyclical") == []
    assert tuned_calls(summary)[0] == "# focal"
    folded = [replace(r, loss=r.loss | {"trials": 6}) for r in grid(1, folds=2) if r.loss["name"] == "focal"]
    assert chosen_settings(summarise(folded), "focal")[0].endswith("  # seeds 0.0, 0.1: --loss focal")


@pytest.mark.parametrize("loss", [*LOSSES, *MORE], ids=lambda loss: loss.name)
def test_the_option_makes_the_loss_of_the_run(loss):
    for changes in ({}, {"learning_rate_scale": 1.234567890123}, {"label_smoothing": 0.05}, {"tau": 0.0}):
        if loss.smoothing_odds and changes.keys() & {"label_smoothing", "tau"}:
            continue  # refused
        settings = (*SETTINGS[loss.name.partition(":")[0]], "learning_rate_scale")
        changed = replace(loss, **{name: value for name, value in changes.items() if name in settings})
        tuned = replace(changed, name=f"{loss.name}:tuned", title=f"{loss.title}, tuned", trials=8)
        (made,) = losses_in(spelled_loss(tuned))
        assert replace(made, name="", title="") == replace(changed, name="", title="")


def test_the_option_of_a_custom_loss_names_its_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import torch.nn.functional as F\n\n\ndef loss(z, y):\n    return F.cross_entropy(z, y)\n")
    for text in (f"mine={path}:loss", f"mine={path}:loss,learning_rate_scale=0.5"):
        (loss,) = losses_in(text)
        assert spelled_loss(replace(loss, name=f"{loss.name}:tuned", trials=4)) == text
    assert spelled_loss(replace(LDAM_DRW, name="of another version")) == ""


def test_losses_without_a_call_have_the_option_alone():
    records = [
        replace(r, loss=asdict(replace(LDAM_DRW, max_margin=0.3, trials=4))) if r.loss["name"] == "focal" else r
        for r in grid(2)
    ]
    assert chosen_settings(summarise(records), "ldam-drw") == ["# seeds 0, 1: --loss ldam-drw:max_margin=0.3"]
