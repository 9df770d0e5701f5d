"""Promise: LightGBM trains real tables with the loss; eta follows its rounds, also through init_model."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    log_loss,
    recall_score,
    roc_auc_score,
)
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from cyclofocal import BinaryCyclicalFocalLoss, CyclicalFocalLoss
from cyclofocal.integrations.boosting import probabilities
from cyclofocal.schedules import cyclical_eta

lightgbm = pytest.importorskip("lightgbm")
from cyclofocal.integrations.lightgbm import BoosterLoss, CyclicalFocalLGBMClassifier

ROUNDS = 20
PLAIN = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0}
PARAMETERS = {
    "num_leaves": 7,
    "num_threads": 1,
    "verbose": -1,
    "deterministic": True,
    "force_row_wise": True,
    "seed": 0,
}


def _train(table, criterion, rounds=ROUNDS, total=ROUNDS, callbacks=(), weight=None, classes=10, **options):
    x, x_test, y, y_test = table
    loss = BoosterLoss(criterion, total)
    several = {"num_class": classes} if isinstance(criterion, CyclicalFocalLoss) else {}
    data = lightgbm.Dataset(x, y, weight=weight, free_raw_data=False)
    return lightgbm.train(
        PARAMETERS | several | {"objective": loss.objective},
        data,
        rounds,
        valid_sets=[lightgbm.Dataset(x_test, y_test, reference=data)],
        feval=loss.metric,
        callbacks=[loss.callback, *callbacks],
        **options,
    )


def test_a_rare_class_is_learnt_and_eta_follows_the_rounds(binary_table, watch):
    criterion = BinaryCyclicalFocalLoss(gamma_hc=2.0, schedule=watch)
    watch.seen.clear()
    scores = _train(binary_table, criterion).predict(binary_table[1])
    assert watch.seen == pytest.approx([cyclical_eta(round_ / (ROUNDS - 1)) for round_ in range(ROUNDS)])
    assert average_precision_score(binary_table[3], scores) > 0.8  # chance: 0.09


def test_trees_of_several_classes_are_one_round(digits_table, watch):
    criterion = CyclicalFocalLoss(label_smoothing=0.1, schedule=watch)
    watch.seen.clear()
    booster = _train(digits_table, criterion)
    assert watch.seen == pytest.approx([cyclical_eta(round_ / (ROUNDS - 1)) for round_ in range(ROUNDS)])
    p = probabilities(booster.predict(digits_table[1]))
    np.testing.assert_allclose(p.sum(1), 1)
    assert recall_score(digits_table[3], p.argmax(1), average="macro") > 0.6  # chance: 0.1


def test_a_real_imbalanced_table(keel_table):
    table = keel_table("yeast4")  # 51 of 1484
    scores = _train(table, BinaryCyclicalFocalLoss(gamma_hc=2.0)).predict(table[1])
    assert average_precision_score(table[3], scores) > 0.2  # chance: 0.03
    table = keel_table("page-blocks")  # 4913, 329, 115, 88 and 28 of 5473
    p = probabilities(_train(table, CyclicalFocalLoss(), classes=5).predict(table[1]))
    assert recall_score(table[3], p.argmax(1), average="macro") > 0.7  # chance: 0.2


@pytest.mark.parametrize("binary", [True, False])
def test_its_estimator_for_scikit_learn(binary_table, digits_table, binary):
    x, x_test, y, y_test = binary_table if binary else digits_table
    criterion = BinaryCyclicalFocalLoss() if binary else CyclicalFocalLoss()
    loss, weight = BoosterLoss(criterion, ROUNDS), np.random.default_rng(0).uniform(0.5, 2, len(y))
    settings = PARAMETERS | {"n_estimators": ROUNDS, "metric": "None"}
    estimator = lightgbm.LGBMClassifier(objective=loss.sklearn_objective, **settings)
    estimator.fit(
        x,
        y,
        sample_weight=weight,
        eval_X=x_test,
        eval_y=y_test,
        eval_metric=loss.sklearn_metric,
        callbacks=[loss.callback, lightgbm.early_stopping(ROUNDS, verbose=False)],
    )
    assert criterion.progress == 1
    p = probabilities(estimator.predict(x_test, raw_score=True))
    booster = _train((x, x_test, y, y_test), type(criterion)(), weight=weight)
    np.testing.assert_allclose(p, probabilities(booster.predict(x_test)), rtol=0.02, atol=0.02)
    best = estimator.best_score_["valid_0"]
    assert list(best) == ["log_loss"]
    assert best["log_loss"] == pytest.approx(log_loss(y_test, p), rel=1e-5)


def test_an_init_model_continues_the_cycle(binary_table, watch):
    whole = _train(binary_table, BinaryCyclicalFocalLoss())
    half = _train(binary_table, BinaryCyclicalFocalLoss(), rounds=8)
    criterion = BinaryCyclicalFocalLoss(schedule=watch)
    watch.seen.clear()
    rest = _train(binary_table, criterion, rounds=ROUNDS - 8, init_model=half)
    assert watch.seen == pytest.approx([cyclical_eta(round_ / (ROUNDS - 1)) for round_ in range(8, ROUNDS)])
    np.testing.assert_allclose(rest.predict(binary_table[1]), whole.predict(binary_table[1]), rtol=1e-5, atol=1e-5)


def test_early_stopping_by_the_plain_log_loss(binary_table):
    history = {}
    stop = lightgbm.early_stopping(3, verbose=False)
    booster = _train(
        binary_table, BinaryCyclicalFocalLoss(), 300, 300, callbacks=[stop, lightgbm.record_evaluation(history)]
    )
    assert 0 < booster.best_iteration < 300
    best = history["valid_0"]["log_loss"][booster.best_iteration - 1]
    assert best == pytest.approx(log_loss(binary_table[3], probabilities(booster.predict(binary_table[1]))))


def test_cross_validation_moves_the_clock_too(binary_table):
    criterion = BinaryCyclicalFocalLoss()
    loss = BoosterLoss(criterion, ROUNDS)
    data = lightgbm.Dataset(binary_table[0], binary_table[2])
    parameters = PARAMETERS | {"objective": loss.objective}
    results = lightgbm.cv(parameters, data, ROUNDS, nfold=2, feval=loss.metric, callbacks=[loss.callback])
    assert results["valid log_loss-mean"][-1] < 0.3
    assert criterion.progress == 1


@pytest.mark.parametrize("objective", ["binary", "multiclass"])
def test_gammas_0_is_lightgbms_own_loss(binary_table, digits_table, objective):
    table = binary_table if objective == "binary" else digits_table
    criterion = BinaryCyclicalFocalLoss(**PLAIN) if objective == "binary" else CyclicalFocalLoss(**PLAIN)
    weight = np.random.default_rng(0).uniform(0.5, 2, len(table[2]))
    classes = {"num_class": 10} if objective == "multiclass" else {}
    own = PARAMETERS | classes | {"objective": objective, "boost_from_average": False}
    expected = lightgbm.train(own, lightgbm.Dataset(table[0], table[2], weight=weight), 5)
    booster = _train(table, criterion, rounds=5, weight=weight)
    expected, got = expected.predict(table[1]), probabilities(booster.predict(table[1]))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("binary", [True, False])
def test_the_prior_is_a_starting_score_that_is_not_predicted(binary_table, digits_table, binary):
    """Gammas of 0 are LightGBM's built-in objective with an init_score, which its predictions lack, and weighted rows.

    Early stopping is by the built-in log loss of these.
    """
    x, x_test, y, y_test = binary_table if binary else digits_table
    n = np.bincount(y)
    log_share = np.log(n / n.sum())
    start = np.full(len(y), log_share[1] - log_share[0]) if binary else np.tile(log_share, (len(y), 1))
    weight = n.sum() ** 0.5 / n**0.5
    weight *= len(n) / weight.sum()
    own = PARAMETERS | ({"objective": "binary"} if binary else {"objective": "multiclass", "num_class": 10})
    data = lightgbm.Dataset(x, y, weight=weight[y], init_score=start)
    history: dict = {}
    test = lightgbm.Dataset(x_test, y_test, reference=data, init_score=start[:1].repeat(len(y_test), 0))
    record = lightgbm.record_evaluation(history)
    expected = lightgbm.train(own, data, 5, valid_sets=[test], callbacks=[record]).predict(x_test, raw_score=True)
    if binary:
        criterion = BinaryCyclicalFocalLoss.from_counts(n[1], n.sum(), class_weight="sqrt", tau=1.0, **PLAIN)
    else:
        criterion = CyclicalFocalLoss.from_counts(n, class_weight="sqrt", tau=1.0, **PLAIN)
    ours: dict = {}
    callbacks = [lightgbm.record_evaluation(ours)]
    booster = _train((x, x_test, y, y_test), criterion, rounds=5, callbacks=callbacks)
    np.testing.assert_allclose(booster.predict(x_test), expected, rtol=2e-3, atol=2e-3)
    assert ours["valid_0"]["log_loss"] == pytest.approx(next(iter(history["valid_0"].values())), rel=1e-3)


def test_class_weights_of_its_estimator_are_weights_of_rows(binary_table):
    x, x_test, y, _ = binary_table
    scores = []
    for options, weight in (({"class_weight": "balanced"}, None), ({}, len(y) / 2 / np.bincount(y)[y])):
        loss = BoosterLoss(BinaryCyclicalFocalLoss(), ROUNDS)
        settings = PARAMETERS | {"n_estimators": ROUNDS, "metric": "None"} | options
        estimator = lightgbm.LGBMClassifier(objective=loss.sklearn_objective, **settings)
        scores.append(estimator.fit(x, y, weight, callbacks=[loss.callback]).predict(x_test, raw_score=True))
    np.testing.assert_allclose(*scores)


def test_counts_of_other_classes_are_refused(digits_table):
    with pytest.raises(ValueError, match=r"logit_offset of the loss has shape \(2,\); num_class is 10"):
        _train(digits_table, CyclicalFocalLoss.from_counts([9, 1], tau=1.0))


@pytest.mark.parametrize("balance", [{"scale_pos_weight": 4.0}, {"is_unbalance": True}])
@pytest.mark.parametrize("entry", ["train", "cv", "sklearn"])
def test_balancing_that_would_change_nothing_is_refused(binary_table, entry, balance):
    loss = BoosterLoss(BinaryCyclicalFocalLoss(), ROUNDS)
    data, parameters = lightgbm.Dataset(binary_table[0], binary_table[2]), PARAMETERS | {"objective": loss.objective}
    estimator = lightgbm.LGBMClassifier(objective=loss.sklearn_objective, **balance)
    fits = {
        "train": lambda: lightgbm.train(parameters | balance, data, 2, callbacks=[loss.callback]),
        "cv": lambda: lightgbm.cv(parameters | balance, data, 2, callbacks=[loss.callback]),
        "sklearn": lambda: estimator.fit(binary_table[0], binary_table[2], callbacks=[loss.callback]),
    }
    with pytest.raises(ValueError, match=r"is (4\.0|True), but boosters apply it .*\(pos_weight="):
        fits[entry]()


@pytest.mark.parametrize("balance", [{"scale_pos_weight": 4.0}, {"unbalance": "true"}])
def test_the_weight_of_the_loss_is_what_balances(binary_table, balance):
    """Use gammas of 0, where LightGBM's built-in objective is the same."""
    x, x_test, y, _ = binary_table
    own = PARAMETERS | {"objective": "binary", "boost_from_average": False} | balance
    expected = lightgbm.train(own, lightgbm.Dataset(x, y), 5).predict(x_test)
    weight = balance.get("scale_pos_weight", (y == 0).sum() / (y == 1).sum())
    booster = _train(binary_table, BinaryCyclicalFocalLoss(pos_weight=torch.tensor(weight), **PLAIN), rounds=5)
    np.testing.assert_allclose(probabilities(booster.predict(x_test)), expected, rtol=1e-3, atol=1e-4)


def test_a_neutral_balance_is_accepted(binary_table):
    loss = BoosterLoss(BinaryCyclicalFocalLoss(), ROUNDS)
    data = lightgbm.Dataset(binary_table[0], binary_table[2])
    for neutral in ({"scale_pos_weight": 1}, {"is_unbalance": False}, {"scale_pos_weight": None}):
        lightgbm.train(PARAMETERS | {"objective": loss.objective} | neutral, data, 1, callbacks=[loss.callback])


def test_a_callback_missing_the_second_time_is_noticed(binary_table):
    loss = BoosterLoss(BinaryCyclicalFocalLoss(), ROUNDS)
    data, parameters = lightgbm.Dataset(binary_table[0], binary_table[2]), PARAMETERS | {"objective": loss.objective}
    lightgbm.cv(parameters, data, ROUNDS, nfold=2, feval=loss.metric, callbacks=[loss.callback])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="progress of this loss is never set"):
            lightgbm.train(parameters, data, 1)
        lightgbm.train(parameters, data, ROUNDS, callbacks=[loss.callback])
    estimator = lightgbm.LGBMClassifier(objective=loss.sklearn_objective, **PARAMETERS)
    with pytest.raises(RuntimeError, match="progress of this loss is never set"):
        estimator.fit(binary_table[0], binary_table[2])


def test_a_missing_callback_warns(binary_table):
    loss = BoosterLoss(BinaryCyclicalFocalLoss(), ROUNDS)
    with pytest.raises(RuntimeError, match="progress of this loss is never set"):
        lightgbm.train(
            PARAMETERS | {"objective": loss.objective}, lightgbm.Dataset(binary_table[0], binary_table[2]), 2
        )


SETTINGS = PARAMETERS | {"n_estimators": ROUNDS}
NAMES = np.array([f"class {number}" for number in range(10)])


def _expected_failures(_):
    reason = "min_child_samples counts rows, whatever their weights"
    return {f"check_sample_weight_equivalence_on_{kind}_data": reason for kind in ("dense", "sparse")}


@parametrize_with_checks(
    [CyclicalFocalLGBMClassifier(n_estimators=5, n_jobs=1, min_child_samples=1)],
    expected_failed_checks=_expected_failures,
)
def test_the_classifier_passes_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("binary", [True, False])
def test_gammas_0_is_the_classifier_of_lightgbm(binary_table, digits_table, binary):
    """LightGBM starts at the class frequencies too, weighted by rows and classes."""
    x, x_test, y, _ = binary_table if binary else digits_table
    weight, settings = np.random.default_rng(0).uniform(0.5, 2, len(y)), SETTINGS | {"class_weight": "balanced"}
    plain = lightgbm.LGBMClassifier(**settings).fit(x, NAMES[y], weight)
    ours = CyclicalFocalLGBMClassifier(**settings, **PLAIN).fit(x, NAMES[y], weight)
    np.testing.assert_allclose(ours.predict_proba(x_test), plain.predict_proba(x_test), rtol=0.01, atol=1e-3)
    scores = plain.predict(x_test, raw_score=True)
    np.testing.assert_allclose(ours.predict(x_test, raw_score=True), scores, rtol=0.01, atol=0.01)
    assert (ours.predict(x_test) == plain.predict(x_test)).mean() > 0.99


@pytest.mark.parametrize("binary", [True, False])
def test_the_classifier_starts_at_the_frequencies(binary_table, digits_table, binary):
    x, x_test, y, _ = binary_table if binary else digits_table
    model = CyclicalFocalLGBMClassifier(**SETTINGS | {"n_estimators": 1, "learning_rate": 1e-9}).fit(x, y)
    np.testing.assert_allclose(model.predict_proba(x_test)[0], np.bincount(y) / len(y), rtol=1e-6)


def test_one_fit_of_the_classifier_is_one_cycle(binary_table, monkeypatch):
    seen, original = [], BinaryCyclicalFocalLoss.set_progress
    watched = lambda self, p: seen.append(p) or original(self, p)  # noqa: E731
    monkeypatch.setattr(BinaryCyclicalFocalLoss, "set_progress", watched)
    x, _, y, _ = binary_table
    half = CyclicalFocalLGBMClassifier(**SETTINGS | {"n_estimators": 8}).fit(x, y)
    assert seen == pytest.approx([round_ / 7 for round_ in range(8)])
    seen.clear()
    rest = CyclicalFocalLGBMClassifier(**SETTINGS | {"n_estimators": ROUNDS - 8}).fit(x[:200], y[:200], init_model=half)
    assert seen == pytest.approx([round_ / (ROUNDS - 1) for round_ in range(8, ROUNDS)])
    np.testing.assert_array_equal(rest.prior_, half.prior_)  # that of the first trees


def test_the_classifier_measures_probabilities(binary_table):
    """Metrics by name and of the user see what predict_proba gives; early stopping is by the first."""
    x, x_test, y, y_test = binary_table

    def brier(y_true, p):
        return "brier", brier_score_loss(y_true, p), False

    model = CyclicalFocalLGBMClassifier(**SETTINGS | {"n_estimators": 300})
    stop = lightgbm.early_stopping(3, first_metric_only=True, verbose=False)
    metrics = ["logloss", "error", "auc", brier]
    model.fit(x, y, eval_X=x_test, eval_y=y_test, eval_metric=metrics, callbacks=[stop])
    p = model.predict_proba(x_test)
    assert 0 < model.best_iteration_ < 300
    assert model.best_score_["valid_0"] == pytest.approx(
        {
            "binary_logloss": log_loss(y_test, p),
            "binary_error": 1 - accuracy_score(y_test, model.predict(x_test)),
            "auc": roc_auc_score(y_test, p[:, 1]),
            "brier": brier_score_loss(y_test, p[:, 1]),
        }
    )


@pytest.mark.filterwarnings("ignore:The argument 'eval_set' is deprecated")  # eval_y takes no names
def test_the_default_metric_of_several_classes(digits_table):
    x, x_test, y, y_test = digits_table
    model = CyclicalFocalLGBMClassifier(**SETTINGS, early_stopping_round=3, label_smoothing=0.1)
    model.fit(x, NAMES[y], eval_set=[(x_test, NAMES[y_test])])
    expected = log_loss(y_test, model.predict_proba(x_test))
    assert model.best_score_["valid_0"] == pytest.approx({"multi_logloss": expected})
    assert set(model.predict(x_test)) <= set(NAMES)


def test_the_classifier_is_cloned_searched_and_pickled(binary_table):
    x, x_test, y, _ = binary_table
    model = CyclicalFocalLGBMClassifier(**SETTINGS, gamma_hc=1.0)
    assert clone(model).get_params() == model.get_params()
    search = GridSearchCV(model, {"gamma_pos": [1.0, 2.0], "num_leaves": [3]}, cv=2).fit(x, y)
    assert search.best_estimator_.get_params()["num_leaves"] == 3
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict_proba(x_test), search.predict_proba(x_test))


def test_the_classifier_says_nothing_of_its_settings(binary_table, capfd):
    CyclicalFocalLGBMClassifier(n_estimators=1, n_jobs=1).fit(binary_table[0], binary_table[2])
    assert "gamma" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"objective": "binary"}, {}, "objective is 'binary'; it must be None"),
        ({"scale_pos_weight": 4.0}, {}, "scale_pos_weight is 4"),
        ({"gamma_pos": -1.0}, {}, r"gamma_pos is -1\.0"),
        ({}, {"eval_metric": "multi_logloss"}, "eval_metric is 'multi_logloss'; it must be one of logloss, error"),
    ],
)
def test_the_classifier_refuses_what_does_not_fit(binary_table, settings, options, message):
    with pytest.raises(ValueError, match=message):
        CyclicalFocalLGBMClassifier(**SETTINGS | settings).fit(binary_table[0], binary_table[2], **options)
