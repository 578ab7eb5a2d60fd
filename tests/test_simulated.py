"""A step of a 7B and a 3B at their exact shapes, on tensors without numbers: bench/simulate.py.
Here a few of their layers; `make simulate` has all of them, and more cases."""

import os
import sys

import pytest
import torch

from conftest import ROOT

sys.path.insert(0, os.path.join(ROOT, "tests", "bench"))
import simulate as simulation  # noqa: E402
from simulate import most_kernels, simulate  # noqa: E402


@pytest.mark.parametrize("case", [
    "7b --lora 64 --recompute --prompts-per-step 2",
    pytest.param("7b --recompute --prompts-per-step 1", marks=pytest.mark.slow),
    pytest.param("3b --lora 64 --recompute --dtype float16 --prompts-per-step 1",
                 marks=pytest.mark.slow),
])  # fmt: skip
def test_a_step_waits_seldom_and_needs_what_was_planned(case):
    """simulate itself fails where tensors are on two devices, or a recorded step waits."""
    seen = simulate(case, layers=2, tokens=64)
    assert seen["waits"] <= seen["allowed"] == 45 + 64 // 16
    assert seen["peak, GB"] == pytest.approx(seen["plan, GB"], rel=0.05), seen
    assert 0 < seen["kernels"] <= most_kernels(case, layers=2)


def test_what_is_simulated_has_a_gpus_manners():
    with simulation.simulated(7) as device:
        x = torch.ones(1000, device="gpu")
        assert (device.now, device.waits) == (4096, 0)
        with pytest.raises(AssertionError, match="on the host"):
            x + torch.ones(1000)
        total, two = x.long().sum().item(), x[:2].long().tolist()
        assert (total, two, device.waits) == (7, [7, 7], 2)
        assert x.to("cpu").device.type == "cpu" and device.waits == 3  # and to it none waits
        assert torch.ones(2).to("gpu").device.type == "gpu" and device.waits == 3
        y = x * 2
        assert device.now == 8192
        del x, y
        assert (device.now, device.peak) == (0, 4096 + 8192 + 512)
        for waits in (lambda: torch.ones(1, device="gpu").item(), lambda: torch.ones(2).to("gpu")):
            with torch.cuda.graph(None), pytest.raises(AssertionError, match="step is recorded"):
                waits()
