"""Check the framework's version: installed, recent enough, and no malicious release."""

from importlib import metadata


def require_host(name: str, at_least: str, never: tuple[str, ...] = (), twin: str | None = None) -> None:
    """Raise ImportError unless a usable release of the framework is installed; the framework is not imported.

    Args:
        name: name of the distribution, as pip knows it.
        at_least: lowest supported version.
        never: versions that must not be imported.
        twin: another distribution of the same module, which is tried first.

    Raises:
        ImportError: missing, too old or refused; the message has the command to install it.

    Example:
        >>> require_host("torch", "2.6")
        >>> require_host("torch", "1000")
        Traceback (most recent call last):
        ImportError: torch ... is too old: cyclofocal needs torch>=1000; pip install 'torch>=1000'
    """
    if twin and _version(twin):
        name = twin
    found = _version(name)
    wanted = ",".join([f"{name}>={at_least}", *(f"!={version}" for version in never)])
    if found is None:
        other = f" (or {twin})" if twin else ""
        raise ImportError(f"{name} is not installed: cyclofocal needs {wanted}; pip install '{wanted}'{other}")
    from packaging.version import Version  # every framework depends on it, torch does not

    if found in never:
        raise ImportError(f"{name} {found} is a malicious release: remove it, then pip install '{wanted}'")
    if Version(found) < Version(at_least):
        raise ImportError(f"{name} {found} is too old: cyclofocal needs {wanted}; pip install '{wanted}'")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
