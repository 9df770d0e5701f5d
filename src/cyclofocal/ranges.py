"""Checks of numbers, without torch."""


def check_at_least(name: str, value: float | None, least: float = 1, remedy: str = "") -> None:
    """Refuse a number below ``least``, and nan; None stands for a number that was not given."""
    if value is not None and not value >= least:
        raise ValueError(f"{name} is {value}; it must be at least {least}{remedy}")
