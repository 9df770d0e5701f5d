"""A job: all that decides the numbers of a run, and the options it runs with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.records import DamagedRecordError, RunRecord
from cyclofocal.lab.training.run_folder import check_same, identity, identity_of, stored_record
from cyclofocal.lab.training.saved_model import has_model

NOT_TUNED = ("name", "title", "file", "digest", "trials")
"""Fields of a loss that tuning leaves as they are."""


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that change its numbers by rounding at most.

    Attributes:
        root: folder where data sets are looked for.
        workers: number of processes that read images, where they do not lie in memory.
        cpu: stay on the CPU.
        progress: show a bar, or lines where there is no terminal.
        trackers: names that Accelerate knows, such as "tensorboard"; they write into the job's folder.
        command: command line, for the record.
        checkpoint_seconds: see :class:`~cyclofocal.lab.training.run_folder.RunFolder`; 0 saves one every epoch.
        primary_metric: metric for the verdicts, for the record; "": that of
            :func:`~cyclofocal.lab.metrics.default_metric` for the classes of the data.
        margin: margin of equivalence in that metric, for the record.
        keep_models: store the model at the end, for ``cyclofocal predict``; a finished run without it runs again.
    """

    root: Path = Path("data")
    workers: int = 0
    cpu: bool = False
    progress: bool = False
    trackers: tuple[str, ...] = ()
    command: str = ""
    checkpoint_seconds: float = 0
    primary_metric: str = ""
    margin: float | None = None
    keep_models: bool = False


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        recipe, loss, seed: what decides its numbers.
        folder: of this run; None stores nothing on disk, so that the run cannot be resumed.
        options: where and how.
        stage1: job whose final weights this one begins with; None for all but the second of two stages.
        test: False never touches the test set, as the choice of settings must not; the record's ``metrics``,
            ``per_class`` and ``reliability`` are then empty.
        all_data: train on the test samples too; such a model is stored and not evaluated.
    """

    recipe: Recipe
    loss: LossSettings
    seed: int
    folder: Path | None = None
    options: RunOptions = RunOptions()
    stage1: "Job | None" = None
    test: bool = True
    all_data: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """Identity of the run as in ``run.json``: everything that determines its numbers."""
        found = identity(self.recipe, self.loss, self.seed)
        if self.all_data:
            return found | {"test": False, "all_data": True}
        return found if self.evaluates else found | {"test": False}

    @property
    def record_path(self) -> Path:
        """File of the record, once the run has finished."""
        assert self.folder is not None
        return self.folder / "record.jsonl"

    @property
    def keeps_model(self) -> bool:
        """True if the run leaves a model; a reference never does."""
        wanted = self.options.keep_models and not self.loss.estimator
        return wanted and self.folder is not None and (self.test or self.all_data)

    @property
    def evaluates(self) -> bool:
        """True if the run ends with the test set."""
        return self.test and not self.all_data

    @property
    def title(self) -> str:
        """Name in messages."""
        part = self.recipe.data.cross_validation
        fold = f", fold {part[0] + 1} of {part[1]}" if part else ""
        return f"{self.recipe.name}, {self.loss.title}, seed {self.seed}{fold}"

    def stored(self) -> tuple[RunRecord | None, list[DamagedRecordError]]:
        """Record of a finished run, None if missing or damaged; and the problems found.

        A run whose model is asked for and missing has not finished.

        Raises:
            RunMismatchError: the folder holds the record of another run.
            DamagedRunError: something else than a file lies in the record's place.
        """
        if self.folder is None:
            return None, []
        record, damaged = stored_record(self.record_path)
        if record is not None:
            check_same(self.record_path, identity_of(record), self._identity_beside(record))
            if self.keeps_model and not has_model(self.folder):
                return None, damaged
        return record, damaged

    def is_run_of(self, record: RunRecord) -> bool:
        """True if the record is one of this job."""
        return record.seed == self.seed and identity_of(record) == self._identity_beside(record)

    def _identity_beside(self, record: RunRecord) -> dict[str, Any]:
        """The identity that a record of this job has, whose versions may differ, and whose loss may be tuned."""
        asked = self.identity
        asked.pop("all_data", None)  # which the record says by its training samples
        asked["versions"] = record.versions  # of the node that ran it; a report says where they are mixed
        if self.loss.trials:
            asked["loss"] = record.loss | {name: asked["loss"][name] for name in NOT_TUNED}
        return asked
