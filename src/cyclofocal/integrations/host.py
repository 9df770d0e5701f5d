"""The library that an integration works in: there, new enough, and not a release to keep away from."""

from importlib import metadata


def require_host(name: str, at_least: str, never: tuple[str, ...] = (), twin: str | None = None) -> None:
    """Refuse to go on without a usable release of the host; the host itself is not imported.

    Args:
        name: name of the distribution, as pip knows it.
        at_least: lowest version that will do.
        never: versions that must not even be imported.
        twin: another distribution of the same module; it is looked for first.

    Raises:
        ImportError: missing, too old or refused; the message has the command that helps.

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
    from packaging.version import Version  # every host depends on it, torch does not

    if found in never:
        raise ImportError(f"{name} {found} is a malicious release: remove it, then pip install '{wanted}'")
    if Version(found) < Version(at_least):
        raise ImportError(f"{name} {found} is too old: cyclofocal needs {wanted}; pip install '{wanted}'")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
