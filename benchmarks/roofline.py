"""How much work a case is, and the least time that takes on a machine whose rates are known."""

from benchmarks.cases import DTYPES, Case

# A backward pass is two products for each one of the forward pass: the gradients of its two factors.
_PASSES = {"inference": 1, "forward": 1, "backward": 2, "training": 3, "lm_step": 3}


def flops(case: Case, mode: str) -> float:
    """Floating-point operations of the matrix products, each multiplication and each addition one."""
    total = 0
    for layer in range(case.L):
        inputs = case.I if layer == 0 else case.D * case.outputs
        weights = 4 * case.H * (inputs + case.outputs) + case.P * case.H
        total += 2 * case.row_steps * case.D * weights
    if mode == "lm_step":
        total += 2 * case.row_steps * case.outputs * case.V
    return float(total * _PASSES[mode])


def parameters(case: Case) -> int:
    """Weights and biases of the LSTM, as nn.LSTM has them."""
    total = 0
    for layer in range(case.L):
        inputs = case.I if layer == 0 else case.D * case.outputs
        total += case.D * (4 * case.H * (inputs + case.outputs + 2) + case.P * case.H)
    return total


def least_bytes(case: Case, mode: str, dtype: str) -> float:
    """Bytes that must move at least: weights, inputs and outputs of each layer once for each product they are in."""
    size = DTYPES[dtype].itemsize
    values = parameters(case)
    for layer in range(case.L):
        inputs = case.I if layer == 0 else case.D * case.outputs
        values += case.row_steps * (inputs + case.D * case.outputs)
    if mode == "lm_step":
        values += case.V * (case.I + case.outputs)
    return float(values * size * _PASSES[mode])


def bound_us(case: Case, mode: str, dtype: str, peak_tflops: float, peak_gb_s: float) -> float:
    """The larger of the time for the operations and for the bytes, in microseconds.

    A lower bound that leaves out what is special to a recurrence: its steps come one after another, so a step that
    does not fill the machine cannot reach it.
    """
    return max(flops(case, mode) / (peak_tflops * 1e6), least_bytes(case, mode, dtype) / (peak_gb_s * 1e3))
