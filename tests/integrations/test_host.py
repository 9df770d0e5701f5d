"""Promise: without a usable framework the import raises with a remedy; the package itself imports none."""

import ast
import importlib
from importlib import metadata
from pathlib import Path

import pytest

from cyclofocal import integrations
from cyclofocal.integrations.host import require_host

HOSTS = {  # the module, and the distribution that it needs first
    "accelerate": "accelerate",
    "jax": "jax",
    "keras": "keras",
    "lightgbm": "lightgbm",
    "lightning": "lightning",
    "skorch": "skorch",
    "sklearn": "scikit-learn",
    "timm": "timm",
    "torchvision": "torchvision",
    "transformers": "transformers",
    "xgboost": "xgboost",
}


def _reload(host, monkeypatch, version):
    def found(name):
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    module = pytest.importorskip(f"cyclofocal.integrations.{host}", exc_type=ImportError)
    monkeypatch.setattr(metadata, "version", found)
    importlib.reload(module)


@pytest.mark.parametrize("host", HOSTS)
def test_missing(host, monkeypatch):
    with pytest.raises(ImportError, match=rf"{HOSTS[host]} is not installed: .* pip install '{HOSTS[host]}>="):
        _reload(host, monkeypatch, None)


@pytest.mark.parametrize("host", HOSTS)
def test_too_old(host, monkeypatch):
    with pytest.raises(
        ImportError, match=rf"{HOSTS[host]}(-cpu)? 0\.0\.1 is too old: .* pip install '{HOSTS[host]}(-cpu)?>="
    ):
        _reload(host, monkeypatch, "0.0.1")


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_the_malicious_releases_of_lightning_are_refused(version, monkeypatch):
    with pytest.raises(ImportError, match=rf"lightning {version} is a malicious release"):
        _reload("lightning", monkeypatch, version)


def test_versions_are_compared_as_versions(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "1.10")
    require_host("timm", "1.9")


def test_a_twin_will_do_and_is_looked_for_first(monkeypatch):
    def require(versions):
        def found(name):
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(metadata, "version", found)
        require_host("xgboost", "2.1", twin="xgboost-cpu")

    require({"xgboost-cpu": "3.2.0"})
    require({"xgboost": "3.2.0"})
    require({"xgboost": "1.0", "xgboost-cpu": "3.2.0"})
    with pytest.raises(ImportError, match=r"xgboost-cpu 2\.0 is too old: .* pip install 'xgboost-cpu>=2\.1'"):
        require({"xgboost-cpu": "2.0"})
    with pytest.raises(ImportError, match=r"pip install 'xgboost>=2\.1' \(or xgboost-cpu\)"):
        require({})


def test_the_package_itself_imports_nothing():
    body = ast.parse(Path(integrations.__file__).read_text()).body
    assert not [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
