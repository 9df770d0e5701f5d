"""Promise: without a usable host the import says what to do; importing the package imports no host."""

import ast
import importlib
from importlib import metadata
from pathlib import Path

import pytest

from cyclofocal import integrations
from cyclofocal.integrations.host import require_host

HOSTS = ["accelerate", "lightning", "timm", "transformers"]


def _reload(host, monkeypatch, version):
    def found(name):
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    module = importlib.import_module(f"cyclofocal.integrations.{host}")
    monkeypatch.setattr(metadata, "version", found)
    importlib.reload(module)


@pytest.mark.parametrize("host", HOSTS)
def test_missing(host, monkeypatch):
    with pytest.raises(ImportError, match=rf"{host} is not installed: .* pip install '{host}>="):
        _reload(host, monkeypatch, None)


@pytest.mark.parametrize("host", HOSTS)
def test_too_old(host, monkeypatch):
    with pytest.raises(ImportError, match=rf"{host} 0\.9\.1 is too old: .* pip install '{host}>="):
        _reload(host, monkeypatch, "0.9.1")


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_the_malicious_releases_of_lightning_are_refused(version, monkeypatch):
    with pytest.raises(ImportError, match=rf"lightning {version} is a malicious release"):
        _reload("lightning", monkeypatch, version)


def test_versions_are_compared_as_versions(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "1.10")
    require_host("timm", "1.9")


def test_the_package_itself_imports_nothing():
    body = ast.parse(Path(integrations.__file__).read_text()).body
    assert not [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
