"""Promise: CyclicalFocalClassifier is a scikit-learn estimator, and one fit is one cycle."""

import builtins
import pickle

import numpy as np
import pytest
import torch

from cyclofocal import CyclicalFocalLoss
from cyclofocal.schedules import cyclical_eta

pytest.importorskip("sklearn")
pytest.importorskip("skorch")
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
    criterion = model[-1].net_.criterion_
    assert criterion.progress == 1
    assert criterion.eta == 1
    torch.testing.assert_close(criterion.weight, torch.from_numpy(len(y) / 2 / np.bincount(y)))
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
    torch.testing.assert_close(balanced.net_.criterion_.weight, torch.from_numpy(mass.sum() / 2 / mass))


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
    search = GridSearchCV(_model(label_smoothing=0.1), grid, cv=2).fit(x, y)
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
    weights = [parameter.detach().clone() for parameter in model.net_.module_.parameters()]
    model.set_params(max_epochs=3, learning_rate=1e-9).fit(x, y)
    assert model.net_.criterion_.progress == 1
    for old, new in zip(weights, model.net_.module_.parameters(), strict=True):
        torch.testing.assert_close(new, old)
    with pytest.raises(ValueError, match="warm_start is True, but y has the classes"):
        model.fit(x, y % 3)


def test_early_stopping_keeps_the_best_weights(binary_table):
    x, _, y, _ = binary_table
    model = CyclicalFocalClassifier(
        max_epochs=300, random_state=0, early_stopping=True, n_iter_no_change=3, validation_fraction=0.3
    ).fit(x, y)
    losses = [epoch["valid_loss"] for epoch in model.net_.history]
    assert len(losses) < 300
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
        ({"hidden_layer_sizes": (8, 0)}, r"hidden_layer_sizes is \(8, 0\)"),
        ({"validation_fraction": 1.0}, r"validation_fraction is 1\.0"),
        ({"gamma_hc": -1.0}, r"gamma_hc is -1\.0"),
    ],
)
def test_a_wrong_setting_is_refused(settings, message, binary_table):
    with pytest.raises(ValueError, match=message):
        CyclicalFocalClassifier(**settings).fit(binary_table[0], binary_table[2])
