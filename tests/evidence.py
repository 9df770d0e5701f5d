"""Records for tests, made without a run."""

from dataclasses import asdict, replace

import numpy as np

from cyclofocal.lab.data.config import FolderData
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.loss import CROSS_ENTROPY, CYCLICAL, FOCAL
from cyclofocal.lab.records import RunRecord, write_record
from cyclofocal.lab.training.predictions import Predictions, write

COUNTS = [100, 30, 2]


def record(loss, seed, accuracy, nll=0.5, few=0.5, fold=0, recipe=None):
    metrics = {
        "accuracy": accuracy,
        "balanced_accuracy": accuracy,
        "macro_f1": accuracy,
        "many": accuracy,
        "medium": accuracy,
        "few": few,
        "nll": nll,
        "brier": nll / 2,
        "ece": 0.05,
    }
    return RunRecord(
        recipe={**(recipe or digits()).flat(), "fold": fold},
        loss=asdict(loss),
        seed=seed,
        versions={"torch": "2.14"},
        device="cpu",
        train_counts=COUNTS,
        epochs=[{"epoch": e, "eta": _eta(loss, e), "train_accuracy": 0.7 + e / 50 + seed / 100} for e in range(4)],
        metrics=metrics,
        seconds=2.0,
        epoch_seconds=[0.5, 0.4, 0.4, 0.4] if loss is CROSS_ENTROPY else [0.9, 0.6, 0.6, 0.6],
        command="cyclofocal compare digits --seeds 10",
        per_class=[0.9, 0.8, accuracy],
        classes=["cat", "dog", "owl"],
        test_counts=[50, 46, 4],
        system="Linux x86_64, some CPU",
        primary_metric="balanced_accuracy",
        reliability=[[0, 0, 0]] * 10 + [[20, 14.0, 12], [0, 0, 0], [30, 25.0, 20], [0, 0, 0], [50, 49.0, 48]],
    )


def untimed(record):
    """The same record without its times, which differ between equal runs."""
    return replace(record, seconds=0.0, epoch_seconds=[], data_seconds=[])


def measured(records, gain=0.02):
    """The same records with what later ones hold: logits less the class prior, better by ``gain``, and the rest."""
    for found in records:
        raised = {key: found.metrics[key] + gain for key in ("accuracy", "balanced_accuracy")}
        further = {"macro_auroc": 0.9, "mcc": 0.7, "scaled_nll": 0.4}
        yield replace(
            found,
            metrics=found.metrics | further,
            adjusted=found.metrics | raised,
            tau=1.0 + found.seed % 3 / 10,
            temperature=1.5,
            margin=0.5,
            validation_samples=20,
            confusion=[[45, 5, 0], [4, 40, 2], [1, 1, 2]],
        )


def binary(records, gain=0.1, spread=0.0, auroc=0.9):
    """The records as of two classes, of which "yes" is the rarer, with thresholds that gain about ``gain``.

    The AUROC is ``auroc`` plus the record's difference to an accuracy of 0.8.
    """
    rng = np.random.default_rng(1)
    for found in records:
        plain = found.metrics["balanced_accuracy"]
        numbers = {
            "macro_auroc": auroc + plain - 0.8,
            **dict.fromkeys(("rare_ap", "rare_recall", "rare_precision", "rare_f1", "mcc"), 0.4),
            "tuned_balanced_accuracy": plain + gain + spread * float(rng.normal()),
            **dict.fromkeys(("tuned_f1", "tuned_mcc"), 0.5),
            **dict.fromkeys(("many", "medium", "few"), 0.3),
        }
        yield replace(
            found,
            metrics=found.metrics | numbers,
            adjusted=found.metrics | {"macro_auroc": 0.9, "balanced_accuracy": plain + gain},
            train_counts=[100, 10],
            test_counts=[50, 5],
            classes=["no", "yes"],
            per_class=[0.95, 0.3],
            confusion=[[48, 2], [3, 2]],
            primary_metric="macro_auroc",
            tau=1.0,
            threshold=0.3,
            thresholds={"balanced_accuracy": 0.1, "f1": 0.3, "mcc": 0.35},
            validation_samples=50,
        )


def _eta(loss, epoch):
    return None if loss.cyclical_factor is None else [1.0, 0.0, 0.5, 1.0][epoch]


def grid(seeds, gain=0.01, few=0.5, recipe=None, folds=1):
    """Records of three losses: cyclical is better in accuracy by about ``gain`` and worse in NLL, focal is level."""
    rng = np.random.default_rng(0)
    for seed in range(seeds):
        for fold in range(folds):
            base = 0.8 + 0.05 * rng.random()
            yield record(CROSS_ENTROPY, seed, base, 0.5, few, fold, recipe)
            yield record(FOCAL, seed, base, 0.5 + rng.normal(0, 0.01), few, fold, recipe)
            better = base + gain * (1 + 0.1 * rng.random())
            yield record(CYCLICAL, seed, better, 0.6 + 0.01 * rng.random(), few, fold, recipe)


def data_sets(count, seeds=7, gain=0.01):
    """Records of a grid on each of ``count`` data sets, with cyclical better by ``gain``."""
    for index in range(count):
        recipe = replace(digits(), name=f"set-{index}", title=f"data set {index}", data=FolderData(f"digits-{index}"))
        yield from grid(seeds, gain, recipe=recipe)


def store_run(folder, record, logits, target, ids, classes=()):
    """Write the folder of a run whose test logits are given; its record."""
    predicted, n_classes = logits.argmax(1), logits.shape[1]
    confusion = np.zeros((n_classes, n_classes), dtype=int)
    np.add.at(confusion, (target, predicted), 1)
    names = list(classes) or [f"class {c}" for c in range(n_classes)]
    stored = replace(
        record,
        train_counts=[100 - c % 100 for c in range(n_classes)],
        test_counts=confusion.sum(1).tolist(),
        classes=names,
        per_class=[],
        reliability=[],
        confusion=confusion.tolist(),
        metrics=record.metrics | {"accuracy": float((predicted == target).mean())},
    )
    place = folder / f"{record.loss['name']}-{record.seed}-{record.recipe['fold']}"
    write_record(stored, place / "record.jsonl")
    counts = np.array(stored.train_counts)
    write(Predictions(logits, target, counts, record.loss["title"], ids, tuple(names)), place / "predictions.npz")
    return stored


def store_runs(folder, target, ids, seeds=2, recipe=None, signal=2.0, classes=()):
    """Write run folders of two losses with random logits of which ``signal`` is for the true class; the logits."""
    rng, found = np.random.default_rng(1), {}
    for seed in range(seeds):
        for loss in (CROSS_ENTROPY, FOCAL):
            logits = rng.normal(size=(len(target), target.max() + 1)).astype(np.float32)
            logits[np.arange(len(target)), target] += signal
            found[loss.name, seed] = logits
            store_run(folder, record(loss, seed, 0.5, recipe=recipe), logits, target, ids, classes)
    return found
