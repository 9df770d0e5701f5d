"""Promise: CyclicalFocalClassifier is a scikit-learn estimator, and one fit is one cycle."""

import builtins
import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from cyclofocal import CyclicalFocalLoss
from cyclofocal.schedules import cyclical_eta

pytest.importorskip("sklearn")
import scipy.sparse
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import recall_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from cyclofocal.integrations.sklearn import CyclicalFocalClassifier

EPOCHS = 8


def _model(**settings):
    return make_pipeline(StandardScaler(), CyclicalFocalClassifier(max_epochs=EPOCHS, random_state=0, **settings))


@parametrize_with_checks([CyclicalFocalClassifier(max_epochs=20)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def test_a_rare_class_is_learnt_in_one_cycle(binary_table):
    x, x_test, y, y_test = binary_table
    model = _model(class_weight="balanced").fit(x, y)
    criterion = model[-1].criterion_
    assert criterion.progress == 1
    assert criterion.eta == 1
    share = np.bincount(y)[::-1] / len(y)
    torch.testing.assert_close(criterion.weight, torch.from_numpy(2 * share))  # their mean is 1
    assert recall_score(y_test, model.predict(x_test), average="macro") > 0.8  # chance: 0.5


def test_a_real_imbalanced_table(keel_table):
    x, x_test, y, y_test = keel_table("page-blocks")  # 4913, 329, 115, 88 and 28 of 5473
    model = _model(class_weight="balanced").fit(x, y)
    assert recall_score(y_test, model.predict(x_test), average="macro") > 0.7  # chance: 0.2


def test_weighing_rows_is_weighing_classes(binary_table):
    """Row weights equal class weights, in batches of several rows too; "balanced" counts weighted rows."""
    x, x_test, y, _ = binary_table
    settings = {"max_epochs": 3, "random_state": 0}
    plain = CyclicalFocalClassifier(**settings).fit(x, y)
    by_class = CyclicalFocalClassifier(class_weight={0: 1.0, 1: 5.0}, **settings).fit(x, y)
    by_row = CyclicalFocalClassifier(**settings).fit(x, y, np.where(y == 1, 5.0, 1.0))
    p = by_row.predict_proba(x_test)
    np.testing.assert_allclose(p, by_class.predict_proba(x_test), rtol=1e-6)
    assert np.abs(p - plain.predict_proba(x_test)).max() > 0.01
    balanced = CyclicalFocalClassifier(class_weight="balanced", **settings).fit(x, y, np.where(y == 1, 5.0, 1.0))
    mass = np.bincount(y) * [1, 5]
    torch.testing.assert_close(balanced.criterion_.weight, torch.from_numpy(2 * mass[::-1] / mass.sum()))


PLAIN = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0}


def _first_step(x, y, sample_weight=None, **settings):
    """Fit for one step on all rows; return logits, labels, row weights, loss and gradient of the step."""
    seen = []
    forward = CyclicalFocalLoss.forward

    def watched(self, logits, *args):
        logits.retain_grad()
        seen.append((logits, *args, forward(self, logits, *args)))
        return seen[-1][-1]

    model = CyclicalFocalClassifier((8,), max_epochs=1, batch_size=len(y), random_state=0, **PLAIN | settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CyclicalFocalLoss, "forward", watched)
        model.fit(x, y, sample_weight)
    logits, target, weight, loss = seen[0]
    weight = np.ones(len(y)) if weight is None else weight.numpy()
    return logits.detach().numpy(), target.numpy(), weight, loss.item(), logits.grad.numpy()


@pytest.mark.parametrize(("scheme", "tau"), [(None, 1.0), ("balanced", 0.0), ("sqrt", 0.5), ("effective", 1.0)])
def test_class_weights_and_prior_are_those_of_y(digits_table, prior_loss, scheme, tau):
    x, _, y, _ = digits_table
    logits, target, _, loss, gradient = _first_step(x, y, class_weight=scheme, tau=tau)
    value, expected = prior_loss(logits, target, np.bincount(y), tau, scheme)
    assert loss == pytest.approx(value)
    np.testing.assert_allclose(gradient, expected, atol=1e-12)


@pytest.mark.parametrize("scheme", [None, "balanced", "sqrt"])
def test_the_prior_of_weighted_rows_is_that_of_their_weights(binary_table, prior_loss, scheme):
    """Fractions of a row count as such; repeating every row by its weight is the independent computation."""
    x, _, y, _ = binary_table
    weight = np.where(np.arange(len(y)) % 3, 0.25, 1.25)
    logits, target, rows, loss, _ = _first_step(x, y, weight, class_weight=scheme, tau=1.0)
    times = np.int64(4 * rows)
    counts = np.bincount(y, 4 * weight)
    value, _ = prior_loss(logits.repeat(times, 0), target.repeat(times), counts, 1.0, scheme)
    assert loss == pytest.approx(value)


def test_predictions_have_the_prior_taken_out():
    """Features that say nothing: with tau 1 the classes come out equally likely, without it as frequent as in y."""
    x, y = np.ones((120, 1)), np.repeat([0, 1], [100, 20])
    settings = {"max_epochs": 40, "batch_size": 120, "random_state": 0, "learning_rate": 0.05, **PLAIN}
    for tau, share in ((0.0, 1 / 6), (1.0, 1 / 2)):
        p = CyclicalFocalClassifier((), tau=tau, **settings).fit(x, y).predict_proba(x)
        assert p[0, 1] == pytest.approx(share, abs=0.02)


def test_early_stopping_judges_by_the_prior_of_training():
    """Held-out rows have the frequencies of y: their loss falls to the entropy of these, in place of rising."""
    x, y = np.ones((600, 1)), np.repeat([0, 1], [500, 100])
    settings = {"max_epochs": 60, "batch_size": 600, "random_state": 0, "learning_rate": 0.05, **PLAIN}
    model = CyclicalFocalClassifier((), tau=1.0, early_stopping=True, **settings).fit(x, y)
    entropy = -(np.log(5 / 6) * 5 + np.log(1 / 6)) / 6
    assert min(model.validation_loss_curve_) == pytest.approx(entropy, abs=1e-3)


def test_class_weights_start_late(binary_table, prior_loss):
    x, _, y, _ = binary_table
    late = CyclicalFocalClassifier(class_weight="balanced", weight_start=0.5, max_epochs=4, random_state=0)
    assert late.fit(x, y).criterion_.weight_start == 0.5
    logits, target, _, loss, _ = _first_step(x, y, class_weight="balanced", weight_start=0.5)
    assert loss == pytest.approx(prior_loss(logits, target, np.bincount(y))[0])


def test_a_pipeline_and_early_stopping_take_weights(binary_table):
    x, _, y, _ = binary_table
    weight = np.where(y == 1, 5.0, 1.0)
    model = _model(early_stopping=True).fit(x, y, cyclicalfocalclassifier__sample_weight=weight)
    assert model.score(x, y) > 0.9


@pytest.mark.parametrize(
    ("weight", "message"), [(-1.0, r"sample_weight has values down to -1\.0"), (0.0, "0 everywhere|non-zero")]
)
def test_weights_that_mean_nothing_are_refused(weight, message, binary_table):
    x, _, y, _ = binary_table
    with pytest.raises(ValueError, match=message):
        CyclicalFocalClassifier().fit(x, y, np.full(len(y), weight))


def test_a_grid_search_over_the_loss(digits_table):
    x, x_test, y, y_test = digits_table
    grid = {"cyclicalfocalclassifier__gamma_hc": [2.0, 3.0], "cyclicalfocalclassifier__hidden_layer_sizes": [(), (32,)]}
    search = GridSearchCV(_model(label_smoothing=0.1, batch_size=64), grid, cv=2).fit(x, y)
    assert len(search.cv_results_["params"]) == 4
    assert search.score(x_test, y_test) > 0.7  # chance: 0.1


@pytest.mark.parametrize("frames", ["pandas", "polars"])
def test_data_frames_give_what_arrays_give(frames, binary_table):
    library = pytest.importorskip(frames)
    x, x_test, y, _ = binary_table
    names = list(load_breast_cancer().feature_names)
    labels = np.array(["benign", "malignant"])[y]
    plain = CyclicalFocalClassifier(max_epochs=2, random_state=0).fit(x, labels)
    frame = library.DataFrame(dict(zip(names, x.T, strict=True)))
    framed = CyclicalFocalClassifier(max_epochs=2, random_state=0).fit(frame, library.Series(labels))
    assert list(framed.feature_names_in_) == names
    test_frame = library.DataFrame(dict(zip(names, x_test.T, strict=True)))
    np.testing.assert_allclose(framed.predict_proba(test_frame), plain.predict_proba(x_test), rtol=1e-5, atol=1e-12)
    assert set(framed.predict(test_frame)) <= {"benign", "malignant"}


def test_a_warm_start_continues_in_a_new_cycle(digits_table):
    x, _, y, _ = digits_table
    model = CyclicalFocalClassifier(max_epochs=EPOCHS, random_state=0, warm_start=True).fit(x, y)
    weights = [parameter.detach().clone() for parameter in model.module_.parameters()]
    model.set_params(max_epochs=3, learning_rate=1e-9).fit(x, y)
    assert model.criterion_.progress == 1
    for old, new in zip(weights, model.module_.parameters(), strict=True):
        torch.testing.assert_close(new, old)
    with pytest.raises(ValueError, match="warm_start is True, but y has the classes"):
        model.fit(x, y % 3)


def test_early_stopping_keeps_the_best_weights(binary_table):
    x, _, y, _ = binary_table
    model = CyclicalFocalClassifier(
        max_epochs=300, random_state=0, early_stopping=True, n_iter_no_change=3, validation_fraction=0.3
    ).fit(x, y)
    losses = model.validation_loss_curve_
    assert len(losses) == model.n_iter_ < 300
    assert len(losses) - 1 - int(np.argmin(losses)) == 3


def test_eta_moves_as_the_schedule_says_and_results_repeat(digits_table, monkeypatch):
    seen = []
    x, x_test, y, _ = digits_table
    model = CyclicalFocalClassifier(max_epochs=EPOCHS, random_state=0, batch_size=100)
    original = CyclicalFocalLoss.set_progress
    watched = lambda self, p: seen.append(cyclical_eta(p)) or original(self, p)  # noqa: E731
    monkeypatch.setattr(CyclicalFocalLoss, "set_progress", watched)
    once = model.fit(x, y).predict_proba(x_test)
    steps = EPOCHS * -(-len(y) // 100)
    assert seen == pytest.approx([cyclical_eta(step / (steps - 1)) for step in range(steps)])
    np.testing.assert_array_equal(model.fit(x, y).predict_proba(x_test), once)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict_proba(x_test), once)


def _cycled(p, eta, gamma):
    """Weight of a row whose true class has the probability p."""
    return (1 - eta) * (1 - p) ** gamma + eta


@pytest.mark.parametrize(("loss", "gamma"), [("ce", 0.0), ("focal", 2.0), ("cyclical", 2.0)])
def test_a_training_is_that_of_a_plain_loop_of_torch(digits_table, loss, gamma):
    """AdamW on the weights, half a cosine of learning rate, and cross-entropy times the weight of the loss."""
    x, _, y, _ = digits_table
    settings = {"loss": loss, "warm_start": True, "random_state": 0, "max_epochs": EPOCHS, "batch_size": len(y)}
    model = CyclicalFocalClassifier((16,), learning_rate=0.0, weight_decay=0.5 * EPOCHS**0.5, **settings).fit(x, y)
    module = copy.deepcopy(model.module_)
    model.set_params(learning_rate=0.02).fit(x, y)
    decayed = [{"params": [layer.weight], "weight_decay": 0.5} for layer in (module[0], module[2])]
    kept = [{"params": [layer.bias], "weight_decay": 0.0} for layer in (module[0], module[2])]
    optimizer, losses = torch.optim.AdamW(decayed + kept), []
    for epoch in range(EPOCHS):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2
        rows = nn.functional.cross_entropy(module(torch.tensor(x)), torch.tensor(y), reduction="none")
        eta = cyclical_eta(epoch / (EPOCHS - 1)) if loss == "cyclical" else 0.0
        losses.append((_cycled((-rows).exp(), eta, gamma) * rows).mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert model.loss_curve_ == pytest.approx([value.item() for value in losses])
    for ours, expected in zip(model.module_.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)


def test_calls_of_partial_fit_are_the_epochs_of_one_fit(digits_table):
    x, x_test, y, _ = digits_table
    settings = {"max_epochs": EPOCHS, "batch_size": 100, "random_state": 0}
    whole, model = CyclicalFocalClassifier(**settings).fit(x, y), CyclicalFocalClassifier(**settings)
    for call in range(EPOCHS):
        model.partial_fit(x, y, classes=np.arange(10) if call == 0 else None)
        model = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(model.predict_proba(x_test), whole.predict_proba(x_test))
    assert model.loss_curve_ == whole.loss_curve_
    assert model.n_iter_ == whole.n_iter_ == EPOCHS
    model.set_params(batch_size=len(y)).partial_fit(x, y)
    assert (model.criterion_.progress, model.n_iter_) == (0, EPOCHS + 1)  # a new cycle


def test_partial_fit_takes_parts_without_all_classes(digits_table):
    x, x_test, y, y_test = digits_table
    model = make_pipeline(StandardScaler(), CyclicalFocalClassifier(max_epochs=20, random_state=0))
    scaled, net = model[0].fit_transform(x), model[1]
    for _ in range(20):
        for part in (y < 5, y >= 5):
            net.partial_fit(scaled[part], y[part], classes=np.arange(10))
    assert model.score(x_test, y_test) > 0.5  # chance: 0.1
    with pytest.raises(ValueError, match=r"y has classes that are not in classes: .*10"):
        net.partial_fit(scaled, y + 1)


@pytest.mark.parametrize("setting", [{"early_stopping": True}, {"tau": 1.0}, {"class_weight": "balanced"}])
def test_partial_fit_refuses_what_needs_all_rows(setting, binary_table):
    x, _, y, _ = binary_table
    with pytest.raises(ValueError, match=rf"{next(iter(setting))} is .*, which needs all"):
        CyclicalFocalClassifier(**setting).partial_fit(x, y, classes=[0, 1])


@pytest.mark.parametrize("form", ["csr_matrix", "csr_array", "csc_array", "coo_array"])
def test_sparse_rows_give_what_dense_ones_give(form, digits_table):
    x, x_test, y, _ = digits_table
    make = getattr(scipy.sparse, form)
    settings = {"max_epochs": 3, "batch_size": 50, "random_state": 0, "early_stopping": form == "csr_array"}
    weight = np.where(y == 3, 2.0, 1.0)
    expected = CyclicalFocalClassifier(**settings).fit(x, y, weight).predict_proba(x_test)
    model = CyclicalFocalClassifier(**settings).fit(make(x), y, weight)
    np.testing.assert_allclose(model.predict_proba(make(x_test)), expected, rtol=1e-9, atol=1e-12)


def test_of_sparse_rows_only_a_batch_is_dense(digits_table, monkeypatch):
    x, x_test, y, _ = digits_table
    rows = []
    for form in (scipy.sparse.csr_array, scipy.sparse.csr_matrix):
        original = form.toarray
        watched = lambda self, *args, _made=original, **kwargs: rows.append(self.shape[0]) or _made(self)  # noqa: E731
        monkeypatch.setattr(form, "toarray", watched)
    monkeypatch.setattr("cyclofocal.integrations.sklearn.ROWS_AT_ONCE", 40)
    model = CyclicalFocalClassifier(max_epochs=2, batch_size=50, random_state=0).fit(scipy.sparse.csr_array(x), y)
    assert (sum(rows), max(rows)) == (2 * len(y), 50)
    rows.clear()
    model.predict_proba(scipy.sparse.csr_array(x_test))
    assert (sum(rows), max(rows)) == (len(x_test), 40)


def test_log_probabilities_are_finite_where_none_is_left(binary_table):
    x, x_test, y, _ = binary_table
    model = CyclicalFocalClassifier(max_epochs=3, random_state=0).fit(x, y)
    np.testing.assert_allclose(np.exp(model.predict_log_proba(x_test)), model.predict_proba(x_test), atol=1e-15)
    assert np.isfinite(model.predict_log_proba(1e6 * x_test)).all()
    assert (model.predict_proba(1e6 * x_test) == 0).any()


def test_verbose_prints_every_epoch(binary_table, capsys):
    x, _, y, _ = binary_table
    model = CyclicalFocalClassifier(max_epochs=3, random_state=0, verbose=True).fit(x, y)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"epoch {n} of 3: loss {loss:.6f}" for n, loss in enumerate(model.loss_curve_, 1)]


def test_one_layer_may_be_a_number(binary_table):
    x, x_test, y, _ = binary_table
    once, again = (CyclicalFocalClassifier(layers, max_epochs=2, random_state=0).fit(x, y) for layers in (8, (8,)))
    np.testing.assert_array_equal(once.predict_proba(x_test), again.predict_proba(x_test))


def test_it_says_nothing_even_where_print_is_not_the_builtin(binary_table, monkeypatch, capsys):
    monkeypatch.setattr(builtins, "print", lambda *args, _print=print, **kwargs: _print(*args, **kwargs))  # as Ray does
    x, _, y, _ = binary_table
    CyclicalFocalClassifier(max_epochs=1).fit(x, y)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_epochs": 0}, "max_epochs is 0"),
        ({"loss": "hinge"}, "loss is 'hinge'; it must be one of cyclical, focal, ce"),
        ({"hidden_layer_sizes": (8, 0)}, r"hidden_layer_sizes is \(8, 0\)"),
        ({"validation_fraction": 1.0}, r"validation_fraction is 1\.0"),
        ({"gamma_hc": -1.0}, r"gamma_hc is -1\.0"),
        ({"tau": -1.0}, r"tau is -1\.0"),
        ({"tau": np.inf}, "tau is inf"),
        ({"class_weight": "inverse"}, "class_weight is 'inverse'; it must be one of"),
        ({"class_weight": "effective", "beta": 1.0}, r"beta is 1\.0"),
        ({"weight_start": 0.8}, r"weight_start is 0\.8, but there is no weight"),
        (
            {"class_weight": "sqrt", "weight_start": 0.8, "early_stopping": True},
            r"weight_start is 0\.8 and early_stopping is True",
        ),
        ({"class_weight": "sqrt", "weight_start": 8}, "weight_start is 8; it must lie in"),
    ],
)
def test_a_wrong_setting_is_refused(settings, message, binary_table):
    with pytest.raises(ValueError, match=message):
        CyclicalFocalClassifier(**settings).fit(binary_table[0], binary_table[2])


def test_the_effective_number_of_fractions_is_refused(binary_table):
    x, _, y, _ = binary_table
    with pytest.raises(ValueError, match=r"sample_weight sums to \[.*\] per class, but class_weight 'effective'"):
        CyclicalFocalClassifier(class_weight="effective").fit(x, y, np.full(len(y), 0.3))
