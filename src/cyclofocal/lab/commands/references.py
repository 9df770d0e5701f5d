"""Choose the references of a comparison: models that are fitted in place of a network."""

from collections.abc import Sequence

from cyclofocal.lab.commands.options import refused
from cyclofocal.lab.commands.output import warn
from cyclofocal.lab.oltr.stage_recipe import TwoStages
from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training.job import Job


def added_references(
    experiments: Sequence[Recipe | TwoStages], chosen: Sequence[LossSettings], wanted: bool
) -> list[LossSettings]:
    """References to add to the chosen losses: none where these name some, otherwise all that suit an experiment.

    Raises:
        typer.BadParameter: a reference among the chosen losses cannot be fitted to an experiment.
    """
    from cyclofocal.lab.training.reference import check_reference, default_references, left_out_line

    if named := [loss for loss in chosen if loss.estimator]:
        with refused("--losses", ImportError):
            for experiment in experiments:
                if isinstance(experiment, TwoStages):
                    raise ValueError(f"{experiment.second.name} has two stages; {named[0].name} needs one")
                for loss in named:
                    check_reference(experiment, loss)
        return []
    if not wanted:
        return []
    recipes = [experiment for experiment in experiments if isinstance(experiment, Recipe)]
    if line := left_out_line(recipes):
        warn(line)
    return list(dict.fromkeys(loss for recipe in recipes for loss in default_references(recipe)))


def suits(job: Job, chosen: Sequence[LossSettings]) -> bool:
    """False for the job of a reference that was added for another experiment."""
    from cyclofocal.lab.training.reference import default_references

    return not job.loss.estimator or job.loss in chosen or job.loss in default_references(job.recipe)
