"""The lab: data, recipes, training, comparison, statistics, reports and the command line (extra ``lab``)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclofocal.lab.predict.load import load_model as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name != "load":  # imported when it is used, for it needs the packages of the laboratory
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cyclofocal.lab.predict.load import load_model

    return load_model
