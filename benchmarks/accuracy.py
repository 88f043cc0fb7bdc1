"""The 2x rule: our error against a float64 reference is at most twice torch's own in the same dtype."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def assert_as_accurate(
    ours: Mapping[str, Tensor], torchs: Sequence[Mapping[str, Tensor]], truth: Mapping[str, Tensor]
) -> None:
    """Checks every named result by the 2x rule.

    ``torchs`` holds a run of each implementation torch has. Torch's own error is the largest among them, plus one unit
    in the last place of the largest value, since it is measured on rounded results. Both are needed, because the
    largest error of a few dozen numbers varies by chance: over 300 small float32 problems torch's two CPU paths failed
    the bare rule against each other, for some gradients one time in four.
    """
    for name, true in truth.items():
        for own in torchs:
            assert ours[name].dtype == own[name].dtype, f"{name}: {ours[name].dtype}, torch gives {own[name].dtype}"
        assert ours[name].shape == true.shape, f"{name}: {list(ours[name].shape)}, expected {list(true.shape)}"
        if true.numel() == 0:
            continue
        error = (ours[name].double() - true).abs()
        baseline = max((own[name].double() - true).abs().max().item() for own in torchs)
        unit = torch.finfo(ours[name].dtype).eps * true.abs().max().item()
        allowed = 2 * (baseline + unit)
        worst = error.max().item()
        assert worst <= allowed, (  # also False when the error is NaN
            f"{name}: error {worst:.1e} vs float64 reference, torch's own {baseline:.1e}, allowed {allowed:.1e};"
            f" worst at {[int(i) for i in torch.unravel_index(error.argmax(), error.shape)]}"
        )
