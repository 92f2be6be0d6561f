"""Where compiled programs are kept."""

import jax
import pytest

from vdm import cache


@pytest.fixture
def told(monkeypatch):
    """What JAX is told, by name, where the environment tells it nothing."""
    seen = {}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(jax.config, "update", seen.__setitem__)
    return seen


def test_each_kind_of_cpu_has_a_folder_of_its_own(told, monkeypatch, tmp_path):
    folders = set()
    for cpu in ("one", "other", "one"):
        monkeypatch.setattr(cache, "_cpu", lambda cpu=cpu: cpu)
        cache.enable(str(tmp_path))
        folders.add(told["jax_compilation_cache_dir"])
    assert len(folders) == 2 and all(folder.startswith(str(tmp_path)) for folder in folders)


def test_none_is_kept_where_none_is_wanted(told, monkeypatch, tmp_path):
    cache.enable("")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    cache.enable(str(tmp_path))
    assert not told
