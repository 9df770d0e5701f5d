"""All faults of a file in one error, so that they can be corrected together."""

from collections.abc import Iterator
from contextlib import contextmanager

from cyclofocal.lab.messages import DamagedDataError


class Faults:
    """Faults of a file that were found so far.

    Example:
        >>> faults = Faults("people.csv")
        >>> with faults.noted():
        ...     raise ValueError("people.csv: column 'age' has no value at all")
        >>> faults.add("target is 'lable'")
        >>> faults.refuse()
        Traceback (most recent call last):
        ValueError: people.csv: 2 faults
          1. column 'age' has no value at all
          2. target is 'lable'
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._found: list[ValueError] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, text: str, kind: type[ValueError] = ValueError) -> None:
        """Note a fault, without the title."""
        self._found.append(kind(f"{self.title}: {text}"))

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note a ValueError instead of raising it; the rest of the block is left out."""
        try:
            yield
        except ValueError as error:
            self._found.append(error)

    def refuse(self) -> None:
        """Raise all faults as one error, if there are any.

        Raises:
            DamagedDataError: one of the faults is such an error.
            ValueError: all are others.
        """
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            is_damaged = any(isinstance(fault, DamagedDataError) for fault in self._found)
            texts = [str(fault).removeprefix(f"{self.title}: ") for fault in self._found]
            lines = [f"  {number}. {text}" for number, text in enumerate(texts, start=1)]
            kind = DamagedDataError if is_damaged else ValueError
            raise kind("\n".join([f"{self.title}: {len(lines)} faults", *lines]))
