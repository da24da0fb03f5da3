"""What a machine offers: processors within the limits of a container, devices."""

from pathlib import Path

import pytest

from leuko.model import runtime
from leuko.model.runtime import available_cpus  # before it is patched


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("150000 100000", 2), ("800000 100000", 3), ("20000 100000", 1), ("max 100000", 3), (None, 3)],
)
def test_a_containers_quota_bounds_the_processors(monkeypatch, quota, expected):
    def read_text(path, **_):
        assert str(path) == "/sys/fs/cgroup/cpu.max"
        if quota is None:
            raise FileNotFoundError
        return quota

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert available_cpus() == expected


def test_the_processor_is_always_there():
    runtime.require_device("cpu")
    assert runtime.torch_devices()["cpu"]
