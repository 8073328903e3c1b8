import pytest
import torch

from srs.common.machine import prepare_device

BACKENDS = torch.backends.cudnn, torch.backends.cuda.matmul


@pytest.fixture
def reduced_precision():
    before = [backend.allow_tf32 for backend in BACKENDS]
    for backend in BACKENDS:
        backend.allow_tf32 = True
    yield
    for backend, allowed in zip(BACKENDS, before):
        backend.allow_tf32 = allowed


def test_with_a_gpu_results_repeat_in_full_precision_and_no_allocation_is_filled(monkeypatch, reduced_precision):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode, warn_only: asked.append((mode, warn_only)))
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    assert prepare_device() == "cuda" and asked == [(True, True)]
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not any(backend.allow_tf32 for backend in BACKENDS)


def test_without_one_the_settings_stay(monkeypatch, reduced_precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads = torch.get_num_threads()
    assert prepare_device() == prepare_device(threads) == "cpu"
    assert torch.get_num_threads() == threads and all(backend.allow_tf32 for backend in BACKENDS)
