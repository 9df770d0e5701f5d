"""Promise: XGBoost trains real tables with the loss; eta follows its rounds, also through xgb_model."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import average_precision_score, log_loss, recall_score
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from cyclofocal import BinaryCyclicalFocalLoss, CyclicalFocalLoss
from cyclofocal.integrations.boosting import probabilities
from cyclofocal.schedules import cyclical_eta

xgboost = pytest.importorskip("xgboost")
from cyclofocal.integrations.xgboost import BoosterLoss, CyclicalFocalXGBClassifier

ROUNDS = 20
PLAIN = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0}
PARAMETERS = {"max_depth": 3, "nthread": 1, "base_score": 0.0, "disable_default_eval_metric": True}


def _train(table, criterion, rounds=ROUNDS, total=ROUNDS, callbacks=(), weight=None, classes=10, **options):
    x, x_test, y, y_test = table
    loss = BoosterLoss(criterion, total)
    several = {"num_class": classes} if isinstance(criterion, CyclicalFocalLoss) else {}
    return xgboost.train(
        PARAMETERS | several,
        xgboost.DMatrix(x, y, weight=weight),
        rounds,
        obj=loss.objective,
        custom_metric=loss.metric,
        evals=[(xgboost.DMatrix(x_test, y_test), "test")],
        callbacks=[loss.callback, *callbacks],
        verbose_eval=False,
        **options,
    )


def _scores(booster, table):
    return booster.predict(xgboost.DMatrix(table[1]), output_margin=True)


def test_a_rare_class_is_learnt_and_eta_follows_the_rounds(binary_table, watch):
    criterion = BinaryCyclicalFocalLoss(gamma_hc=2.0, schedule=watch)
    watch.seen.clear()
    scores = _scores(_train(binary_table, criterion), binary_table)
    assert watch.seen == pytest.approx([cyclical_eta(round_ / (ROUNDS - 1)) for round_ in range(ROUNDS)])
    assert average_precision_score(binary_table[3], scores) > 0.8  # chance: 0.09


def test_trees_of_several_classes_are_one_round(digits_table, watch):
    criterion = CyclicalFocalLoss(label_smoothing=0.1, schedule=watch)
    watch.seen.clear()
    p = probabilities(_scores(_train(digits_table, criterion), digits_table))
    assert watch.seen == pytest.approx([cyclical_eta(round_ / (ROUNDS - 1)) for round_ in range(ROUNDS)])
    np.testing.assert_allclose(p.sum(1), 1)
    assert recall_score(digits_table[3], p.argmax(1), average="macro") > 0.6  # chance: 0.1


def test_a_real_imbalanced_table(keel_table):
    table = keel_table("yeast4")  # 51 of 1484
    scores = _scores(_train(table, BinaryCyclicalFocalLoss(gamma_hc=2.0)), table)
    assert average_precision_score(table[3], scores) > 0.2  # chance: 0.03
    table = keel_table("page-blocks")  # 4913, 329, 115, 88 and 28 of 5473
    p = probabilities(_scores(_train(table, CyclicalFocalLoss(), classes=5), table))
    assert recall_score(table[3], p.argmax(1), average="macro") > 0.7  # chance: 0.2


@pytest.mark.parametrize("binary", [True, False])
def test_its_estimator_for_scikit_learn(binary_table, digits_table, binary):
    x, x_test, y, y_test = binary_table if binary else digits_table
    criterion = BinaryCyclicalFocalLoss() if binary else CyclicalFocalLoss()
    loss, metric = BoosterLoss(criterion, ROUNDS), "logloss" if binary else "mlogloss"
    settings = {"max_depth": 3, "n_jobs": 1, "base_score": 0.5, "n_estimators": ROUNDS, "eval_metric": metric}
    estimator = xgboost.XGBClassifier(objective=loss.sklearn_objective, callbacks=[loss.callback], **settings)
    weight = np.random.default_rng(0).uniform(0.5, 2, len(y))
    estimator.fit(x, y, sample_weight=weight, eval_set=[(x_test, y_test)], verbose=False)
    assert criterion.progress == 1
    p = estimator.predict_proba(x_test)
    booster = _train((x, x_test, y, y_test), type(criterion)(), weight=weight)
    expected = probabilities(_scores(booster, (x, x_test)))
    np.testing.assert_allclose(p[:, 1] if binary else p, expected, rtol=1e-3, atol=1e-4)
    assert estimator.evals_result()["validation_0"][metric][-1] == pytest.approx(log_loss(y_test, p), rel=1e-4)


def test_copies_of_an_estimator_share_one_clock(binary_table):
    x, _, y, _ = binary_table
    loss = BoosterLoss(BinaryCyclicalFocalLoss(), 5)
    settings = {"objective": loss.sklearn_objective, "callbacks": [loss.callback], "n_estimators": 5, "n_jobs": 1}
    estimator = xgboost.XGBClassifier(**settings)
    search = GridSearchCV(estimator, {"max_depth": [2, 3]}, cv=2).fit(x, y)  # clones it
    assert search.best_score_ > 0.85
    assert pickle.loads(pickle.dumps(estimator)).fit(x, y).score(x, y) > 0.85  # as it reaches other processes


def test_an_xgb_model_continues_the_cycle(binary_table, watch):
    whole = _train(binary_table, BinaryCyclicalFocalLoss())
    half = _train(binary_table, BinaryCyclicalFocalLoss(), rounds=8)
    criterion = BinaryCyclicalFocalLoss(schedule=watch)
    watch.seen.clear()
    rest = _train(binary_table, criterion, rounds=ROUNDS - 8, xgb_model=half)
    assert watch.seen == pytest.approx([cyclical_eta(round_ / (ROUNDS - 1)) for round_ in range(8, ROUNDS)])
    np.testing.assert_allclose(_scores(rest, binary_table), _scores(whole, binary_table), rtol=1e-5, atol=1e-5)


def test_early_stopping_by_the_plain_log_loss(binary_table):
    history = {}
    booster = _train(binary_table, BinaryCyclicalFocalLoss(), 300, 300, evals_result=history, early_stopping_rounds=3)
    best = booster.best_iteration
    assert 0 < best < 299
    p = probabilities(_scores(booster[: best + 1], binary_table))
    assert history["test"]["log_loss"][best] == pytest.approx(log_loss(binary_table[3], p), rel=1e-4)


def test_cross_validation_moves_the_clock_too(binary_table):
    criterion = BinaryCyclicalFocalLoss()
    loss = BoosterLoss(criterion, ROUNDS)
    data = xgboost.DMatrix(binary_table[0], binary_table[2])
    results = xgboost.cv(
        PARAMETERS,
        data,
        ROUNDS,
        nfold=2,
        obj=loss.objective,
        custom_metric=loss.metric,
        callbacks=[loss.callback],
        as_pandas=False,
    )
    assert results["test-log_loss-mean"][-1] < 0.3
    assert criterion.progress == 1


@pytest.mark.parametrize("objective", ["binary:logistic", "multi:softprob"])
def test_gammas_0_is_xgboosts_own_loss(binary_table, digits_table, objective):
    binary = objective == "binary:logistic"
    table, classes = (binary_table, {}) if binary else (digits_table, {"num_class": 10})
    criterion = BinaryCyclicalFocalLoss(**PLAIN) if binary else CyclicalFocalLoss(**PLAIN)
    weight = np.random.default_rng(0).uniform(0.5, 2, len(table[2]))
    own = {"max_depth": 3, "nthread": 1, "base_score": 0.5, "objective": objective} | classes
    expected = xgboost.train(own, xgboost.DMatrix(table[0], table[2], weight=weight), 5)
    got = probabilities(_scores(_train(table, criterion, rounds=5, weight=weight), table))
    np.testing.assert_allclose(got, expected.predict(xgboost.DMatrix(table[1])), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("binary", [True, False])
def test_the_prior_is_a_base_margin_that_is_not_predicted(binary_table, digits_table, binary):
    """Gammas of 0 are XGBoost's built-in objective with a base_margin in training only, and weighted rows.

    Early stopping is by the built-in log loss of these.
    """
    x, x_test, y, y_test = binary_table if binary else digits_table
    n = np.bincount(y)
    log_share = np.log(n / n.sum())
    start = np.full(len(y), log_share[1] - log_share[0]) if binary else np.tile(log_share, (len(y), 1))
    weight = n.sum() ** 0.5 / n**0.5
    weight *= len(n) / weight.sum()
    own = {"max_depth": 3, "nthread": 1, "base_score": 0.5}
    own |= {"objective": "binary:logistic"} if binary else {"objective": "multi:softprob", "num_class": 10}
    data = xgboost.DMatrix(x, y, weight=weight[y], base_margin=start)
    test = xgboost.DMatrix(x_test, y_test, base_margin=start[:1].repeat(len(y_test), 0))
    history: dict = {}
    evals = {"evals": [(test, "test")], "evals_result": history, "verbose_eval": False}
    expected = xgboost.train(own, data, 5, **evals).predict(xgboost.DMatrix(x_test))
    if binary:
        criterion = BinaryCyclicalFocalLoss.from_counts(n[1], n.sum(), class_weight="sqrt", tau=1.0, **PLAIN)
    else:
        criterion = CyclicalFocalLoss.from_counts(n, class_weight="sqrt", tau=1.0, **PLAIN)
    ours: dict = {}
    table = x, x_test, y, y_test
    booster = _train(table, criterion, rounds=5, evals_result=ours)
    np.testing.assert_allclose(probabilities(_scores(booster, table)), expected, rtol=1e-3, atol=1e-4)
    assert ours["test"]["log_loss"] == pytest.approx(next(iter(history["test"].values())), rel=1e-3)


def test_counts_of_other_classes_are_refused(digits_table):
    with pytest.raises(ValueError, match=r"logit_offset of the loss has shape \(2,\); num_class is 10"):
        _train(digits_table, CyclicalFocalLoss.from_counts([9, 1], tau=1.0))


@pytest.mark.parametrize("entry", ["train", "cv", "sklearn"])
def test_balancing_that_would_change_nothing_is_refused(binary_table, entry):
    loss = BoosterLoss(BinaryCyclicalFocalLoss(), ROUNDS)
    data, balance = xgboost.DMatrix(binary_table[0], binary_table[2]), {"scale_pos_weight": 4.0}
    options = {"obj": loss.objective, "custom_metric": loss.metric, "callbacks": [loss.callback]}
    estimator = xgboost.XGBClassifier(objective=loss.sklearn_objective, callbacks=[loss.callback], **balance)
    fits = {
        "train": lambda: xgboost.train(PARAMETERS | balance, data, 2, **options),
        "cv": lambda: xgboost.cv(PARAMETERS | balance, data, 2, **options),
        "sklearn": lambda: estimator.fit(binary_table[0], binary_table[2]),
    }
    with pytest.raises(ValueError, match=r"scale_pos_weight is 4, but boosters apply it .*\(pos_weight="):
        fits[entry]()


def test_the_weight_of_the_loss_is_what_balances(binary_table):
    """Use gammas of 0, where XGBoost's built-in objective is the same."""
    data = xgboost.DMatrix(binary_table[0], binary_table[2])
    own = {"max_depth": 3, "nthread": 1, "base_score": 0.5, "objective": "binary:logistic", "scale_pos_weight": 4.0}
    expected = xgboost.train(own, data, 5).predict(xgboost.DMatrix(binary_table[1]))
    booster = _train(binary_table, BinaryCyclicalFocalLoss(pos_weight=torch.tensor(4.0), **PLAIN), rounds=5)
    np.testing.assert_allclose(probabilities(_scores(booster, binary_table)), expected, rtol=1e-3, atol=1e-4)


def test_a_base_score_that_is_no_probability_is_refused(binary_table):
    x, _, y, _ = binary_table
    loss = BoosterLoss(BinaryCyclicalFocalLoss(), ROUNDS)
    settings = {"objective": loss.sklearn_objective, "callbacks": [loss.callback], "n_jobs": 1, "n_estimators": ROUNDS}
    with pytest.raises(ValueError, match=r"base_score is 0\.0; for XGBClassifier .* a probability"):
        xgboost.XGBClassifier(base_score=0, **settings).fit(x, y)
    got = [xgboost.XGBClassifier(**settings, **score).fit(x, y).predict_proba(x) for score in ({}, {"base_score": 0.5})]
    np.testing.assert_array_equal(*got)


def test_a_callback_missing_the_second_time_is_noticed(binary_table):
    x, _, y, _ = binary_table
    loss, data = BoosterLoss(BinaryCyclicalFocalLoss(), ROUNDS), xgboost.DMatrix(x, y)
    options = {"obj": loss.objective, "custom_metric": loss.metric}
    xgboost.cv(PARAMETERS, data, ROUNDS, nfold=2, callbacks=[loss.callback], as_pandas=False, **options)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="progress of this loss is never set"):
            xgboost.train(PARAMETERS, data, 1, **options)
        xgboost.train(PARAMETERS, data, ROUNDS, callbacks=[loss.callback], **options)
    with pytest.raises(RuntimeError, match="progress of this loss is never set"):
        xgboost.XGBClassifier(objective=loss.sklearn_objective, n_jobs=1).fit(x, y)


def test_a_missing_callback_warns(binary_table):
    loss = BoosterLoss(BinaryCyclicalFocalLoss(), ROUNDS)
    with pytest.raises(RuntimeError, match="progress of this loss is never set"):
        xgboost.train(PARAMETERS, xgboost.DMatrix(binary_table[0], binary_table[2]), 2, obj=loss.objective)


SETTINGS = {"n_estimators": ROUNDS, "max_depth": 3, "n_jobs": 1}
NAMES = np.array([f"class {number}" for number in range(10)])


def _expected_failures(_):
    reason = "sums of float32 depend on their order"
    return {f"check_sample_weight_equivalence_on_{kind}_data": reason for kind in ("dense", "sparse")}


@parametrize_with_checks(
    [CyclicalFocalXGBClassifier(n_estimators=5, n_jobs=1)], expected_failed_checks=_expected_failures
)
def test_the_classifier_passes_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("binary", [True, False])
def test_gammas_0_is_the_classifier_of_xgboost(binary_table, digits_table, binary):
    """XGBoost starts at the same scores if they are its base_score."""
    x, x_test, y, _ = binary_table if binary else digits_table
    weight = np.random.default_rng(0).uniform(0.5, 2, len(y))
    shares = np.bincount(y, weight) / weight.sum()
    start = float(shares[1]) if binary else np.log(shares).tolist()
    plain = xgboost.XGBClassifier(**SETTINGS, base_score=start).fit(x, y, sample_weight=weight)
    ours = CyclicalFocalXGBClassifier(**SETTINGS, **PLAIN).fit(x, NAMES[y], sample_weight=weight)
    np.testing.assert_allclose(ours.predict_proba(x_test), plain.predict_proba(x_test), rtol=0.01, atol=1e-3)
    assert (ours.predict(x_test) == NAMES[plain.predict(x_test)]).mean() > 0.99
    assert list(ours.classes_) == list(NAMES[: len(shares)])


@pytest.mark.parametrize("binary", [True, False])
def test_the_classifier_starts_at_the_frequencies(binary_table, digits_table, binary, tmp_path):
    x, x_test, y, _ = binary_table if binary else digits_table
    model = CyclicalFocalXGBClassifier(n_estimators=1, learning_rate=1e-9, n_jobs=1).fit(x, y)
    np.testing.assert_allclose(model.predict_proba(x_test)[0], np.bincount(y) / len(y), rtol=1e-5)
    model.save_model(tmp_path / "model.json")
    plain = xgboost.XGBClassifier()
    plain.load_model(tmp_path / "model.json")
    np.testing.assert_allclose(plain.predict_proba(x_test), model.predict_proba(x_test), rtol=1e-6)


def test_one_fit_of_the_classifier_is_one_cycle(binary_table, monkeypatch):
    seen, original = [], BinaryCyclicalFocalLoss.set_progress
    watched = lambda self, p: seen.append(p) or original(self, p)  # noqa: E731
    monkeypatch.setattr(BinaryCyclicalFocalLoss, "set_progress", watched)
    x, x_test, y, _ = binary_table
    half = CyclicalFocalXGBClassifier(**SETTINGS | {"n_estimators": 8}, **PLAIN).fit(x, y)
    assert seen == pytest.approx([round_ / 7 for round_ in range(8)])
    seen.clear()
    rest = CyclicalFocalXGBClassifier(**SETTINGS | {"n_estimators": ROUNDS - 8}, **PLAIN).fit(x, y, xgb_model=half)
    assert seen == pytest.approx([round_ / (ROUNDS - 1) for round_ in range(8, ROUNDS)])
    whole = CyclicalFocalXGBClassifier(**SETTINGS, **PLAIN).fit(x, y)
    np.testing.assert_allclose(rest.predict_proba(x_test), whole.predict_proba(x_test), rtol=1e-4)


@pytest.mark.parametrize("binary", [True, False])
def test_early_stopping_and_metrics_of_the_classifier(binary_table, digits_table, binary):
    x, x_test, y, y_test = binary_table if binary else digits_table
    settings = SETTINGS | {"n_estimators": 300, "early_stopping_rounds": 3, "learning_rate": 0.5}
    model = CyclicalFocalXGBClassifier(**settings).fit(x, NAMES[y], eval_set=[(x_test, NAMES[y_test])], verbose=False)
    assert 0 < model.best_iteration < 299
    history = model.evals_result()["validation_0"]["logloss" if binary else "mlogloss"]
    assert history[model.best_iteration] == pytest.approx(log_loss(y_test, model.predict_proba(x_test)), rel=1e-4)


def test_the_classifier_is_cloned_searched_and_pickled(binary_table):
    x, x_test, y, _ = binary_table
    model = CyclicalFocalXGBClassifier(**SETTINGS, gamma_hc=1.0)
    before = model.get_params()
    assert clone(model).get_params().keys() == before.keys()
    search = GridSearchCV(model, {"gamma_pos": [1.0, 2.0], "max_depth": [2]}, cv=2).fit(x, y)
    assert search.best_estimator_.get_params()["max_depth"] == 2
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict_proba(x_test), search.predict_proba(x_test))
    model.fit(x, y)
    after = model.get_params()
    assert {name: after[name] for name in ("objective", "callbacks", "base_score")} == {
        name: before[name] for name in ("objective", "callbacks", "base_score")
    }


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"objective": "binary:logitraw"}, {}, "objective is 'binary:logitraw'; leave it out"),
        ({"scale_pos_weight": 4.0}, {}, "scale_pos_weight is 4"),
        ({"gamma_pos": -1.0}, {}, r"gamma_pos is -1\.0"),
        ({}, {"eval_set": [([[0.0] * 30], [7])]}, r"eval_set has labels that are not in y: .*7"),
        ({}, {"sample_weight": [0.0] * 235}, "sample_weight is zero in every row of class number 0"),
    ],
)
def test_the_classifier_refuses_what_does_not_fit(binary_table, settings, options, message):
    with pytest.raises(ValueError, match=message):
        CyclicalFocalXGBClassifier(**SETTINGS | settings).fit(binary_table[0], binary_table[2], **options)
