"""One writer per workdir."""

import errno
import os

import filelock
import pytest

from vdm.errors import UserError
from vdm.runtime import lock


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "WAIT", 0.02)


def test_the_workdir_is_locked_while_results_are_written(tmp_path):
    with lock.place_for_results(tmp_path, 7) as place:
        assert place == tmp_path and not lock.is_free(tmp_path)
        with pytest.raises(UserError, match=rf"written by process {os.getpid()} on "):
            with lock.hold(tmp_path):
                pass
    assert lock.is_free(tmp_path)


def test_results_have_a_folder_of_their_own_beside_a_training(tmp_path):
    with lock.hold(tmp_path):
        with lock.place_for_results(tmp_path, 7) as place:
            assert place == tmp_path / "step-7" and not lock.is_free(place)
            with pytest.raises(UserError, match="step-7"):  # two evaluations
                with lock.place_for_results(tmp_path, 7):
                    pass
        assert lock.is_free(place) and not lock.is_free(tmp_path)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_workdir_that_cannot_be_written_is_not_free(number, monkeypatch, tmp_path):
    def refuse(lock, timeout):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    assert not lock.is_free(tmp_path)
