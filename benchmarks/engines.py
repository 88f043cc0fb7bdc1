"""What other programs make of an nn.LSTM's weights, to be timed beside it; each is optional and imported when used."""

import importlib
import io
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Forward = Callable[[Tensor, tuple[Tensor, Tensor]], tuple[Tensor, tuple[Tensor, Tensor]]]

# The packages that an engine imports.
_PACKAGES = {
    "onnxruntime": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "flashrnn": ("flashrnn",),
    "haste": ("haste_pytorch",),
}


def why_absent(name: str) -> str | None:
    """None if an engine's packages can be imported, else why not.

    Args:
        name: of the function here that makes the engine.
    """
    for package in _PACKAGES[name]:
        try:
            importlib.import_module(package)
        except Exception as error:  # a broken package may raise anything
            if isinstance(error, ModuleNotFoundError) and error.name == package:
                return f"absent: pip install {package}"
            return f"absent: {package} is installed, but importing it fails: {type(error).__name__}: {error}"
    return None


def onnx_model(module: nn.LSTM) -> bytes:
    """An ONNX model of one LSTM operator a layer, with the weights in it and T and N left open.

    Args:
        module: in float32, with its time dimension first and no projection.

    Returns:
        The model in its file format: inputs x [T, N, I], h0 and c0 [L*D, N, H]; outputs y [T, N, D*H], h_n and c_n.

    Raises:
        ValueError: the operator does not have what the module does.
    """
    from onnx import TensorProto, helper

    _refuse(module, "ONNX Runtime and OpenVINO", ["proj_size", "batch_first"], [torch.float32])
    L, D, H = module.num_layers, _directions(module), module.hidden_size

    def value(name: str, *shape: int | str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def states(*names: str) -> list[Any]:
        return [value(name, L * D, "N", H) for name in names]

    nodes = [node for layer in range(L) for node in _onnx_layer(module, layer)]
    if L > 1:
        nodes[:0] = [helper.make_node("Split", [name], _each_layer(module, name), axis=0) for name in ("h0", "c0")]
        nodes += [helper.make_node("Concat", _each_layer(module, name), [name], axis=0) for name in ("h_n", "c_n")]
    inputs, outputs = [value("x", "T", "N", module.input_size)], [value("y", "T", "N", D * H)]
    graph = helper.make_graph(
        nodes, "lstm", inputs + states("h0", "c0"), outputs + states("h_n", "c_n"), _onnx_weights(module)
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def onnxruntime(module: nn.LSTM, threads: int) -> Forward:
    """The module in ONNX Runtime on the CPU.

    Args:
        module: as `onnx_model` takes it.
        threads: that share an operator.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Constant weights are packed here, once.
    session = ort.InferenceSession(onnx_model(module), options, providers=["CPUExecutionProvider"])

    def forward(x: Tensor, hx: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        # Arrays go in and come out without a copy. Binding the memory of torch's tensors instead takes as long, and for
        # a single step about 50 us longer.
        arrays = {name: tensor.numpy() for name, tensor in zip(("x", "h0", "c0"), (x, *hx), strict=True)}
        y, h_n, c_n = (torch.from_numpy(array) for array in session.run(None, arrays))
        return y, (h_n, c_n)

    return forward


def openvino(module: nn.LSTM, threads: int) -> Forward:
    """The module in OpenVINO on the CPU, compiled anew for each T and N: about a tenth faster than left open.

    Args:
        module: as `onnx_model` takes it.
        threads: that share an operator.
    """
    import openvino as ov

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # its default is bfloat16 where the CPU has it
        # Threads bound to cores were no faster alone, and up to five times slower beside other busy threads.
        "ENABLE_CPU_PINNING": False,
    }
    core, model = ov.Core(), onnx_model(module)

    @cache
    def request(x_shape: torch.Size, h_shape: torch.Size) -> Any:
        graph = core.read_model(io.BytesIO(model))
        graph.reshape({"x": [*x_shape], "h0": [*h_shape], "c0": [*h_shape]})
        return core.compile_model(graph, "CPU", settings).create_infer_request()

    def forward(x: Tensor, hx: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        run = request(x.shape, hx[0].shape)
        inputs = [tensor.contiguous() for tensor in (x, *hx)]
        y = x.new_empty(*x.shape[:2], _directions(module) * module.hidden_size)
        h_n, c_n = (torch.empty_like(tensor) for tensor in inputs[1:])
        for index, tensor in enumerate(inputs):
            run.set_input_tensor(index, ov.Tensor(tensor.numpy(), shared_memory=True))
        for index, tensor in enumerate((y, h_n, c_n)):
            run.set_output_tensor(index, ov.Tensor(tensor.numpy(), shared_memory=True))
        run.infer(share_outputs=True)
        return y, (h_n, c_n)

    return forward


# FlashRNN and Haste are for GPUs alone. What follows was written from their public interfaces (FlashRNN's wheel 1.0.8;
# Haste's frameworks/pytorch/lstm.py at ed8cdec and base_rnn.py at 440d57f) and has not run on a GPU. It agrees with
# nn.LSTM in FlashRNN's own "vanilla" backend on the CPU, and in the stand-ins of tests/test_engines.py.


def flashrnn(module: nn.LSTM) -> nn.Module:
    """The module in FlashRNN's fused kernel, with torch for the input's product; differentiable.

    Args:
        module: on a GPU, one direction. FlashRNN compiles a kernel for each N when it is first called, which fails for
            an H that is no multiple of 16 or whose recurrent weights do not fit the GPU's registers and shared memory.

    Returns:
        A `Forward` whose parameters are FlashRNN's own, in the module's dtype. float32 runs as TF32.

    Raises:
        ValueError: FlashRNN does not have what the module does.
    """
    _refuse(module, "FlashRNN", _RECURRENCE_ALONE, [torch.bfloat16, torch.float16, torch.float32])
    return _FlashRNN(module)


class _FlashRNN(nn.Module):
    def __init__(self, module: nn.LSTM) -> None:
        super().__init__()
        from flashrnn import flashrnn

        self.run = flashrnn
        layers = [_native_weights(module, layer) for layer in range(module.num_layers)]
        self.weight_ih = nn.ParameterList(_by_unit(w_ih) for w_ih, _, _, _ in layers)
        self.weight_hh = nn.ParameterList(_by_unit(w_hh) for _, w_hh, _, _ in layers)
        self.bias = nn.ParameterList(_by_unit(b_ih + b_hh) for _, _, b_ih, b_hh in layers)

    def forward(self, x: Tensor, hx: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As nn.LSTM's."""
        last_states = []
        dtype = str(x.dtype).removeprefix("torch.")
        for weight_ih, weight_hh, bias, h0, c0 in zip(self.weight_ih, self.weight_hh, self.bias, *hx, strict=True):
            # FlashRNN takes [N, T, gate, head, unit] and so on, but its kernel has [T, N, head, unit, gate]. Views of
            # tensors in the kernel's order spare the copies between the two.
            gates = F.linear(x, weight_ih.flatten(0, 1)).view(*x.shape[:2], 1, *weight_ih.shape[:2])
            states, last = self.run(
                gates.permute(1, 0, 4, 2, 3),
                weight_hh[None].permute(2, 0, 1, 3),
                bias[None].permute(2, 0, 1),
                states=torch.stack((h0, c0))[:, :, None, None],
                function="lstm",
                backend="cuda_fused",
                dtype=dtype,
            )
            x = states[0, :, :, 0].transpose(0, 1)  # states are [h or c, N, T, head, unit]
            last_states.append(last[:, :, 0, 0])
        h_n, c_n = torch.stack(last_states, dim=1)
        return x, (h_n, c_n)


def haste(module: nn.LSTM) -> nn.Module:
    """The module in Haste, a layer at a time; differentiable.

    Args:
        module: on a GPU, one direction.

    Returns:
        A `Forward` whose parameters are Haste's own. float32 and float64 are all that Haste has.

    Raises:
        ValueError: Haste does not have what the module does.
    """
    _refuse(module, "Haste", _RECURRENCE_ALONE, [torch.float32, torch.float64])
    return _Haste(module)


class _Haste(nn.Module):
    def __init__(self, module: nn.LSTM) -> None:
        super().__init__()
        from haste_pytorch import LSTM

        self.layers = nn.ModuleList()
        for index in range(module.num_layers):
            weights = _native_weights(module, index)
            layer = LSTM(weights[0].shape[1], module.hidden_size)
            layer.from_native_weights(*weights)  # reorders the gates and puts its copies in the module's place
            self.layers.append(layer)
        self.train(module.training)  # in training it keeps what a backward pass needs

    def forward(self, x: Tensor, hx: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As nn.LSTM's."""
        last_states = []
        for index, layer in enumerate(self.layers):
            x, last = layer(x, tuple(state[index : index + 1] for state in hx))
            last_states.append(last)
        h_n, c_n = (torch.cat(states) for states in zip(*last_states, strict=True))
        return x, (h_n, c_n)


_RECURRENCE_ALONE = ["proj_size", "batch_first", "bidirectional", "dropout"]


def _refuse(module: nn.LSTM, engine: str, options: list[str], dtypes: list[torch.dtype]) -> None:
    for option in options:
        if value := getattr(module, option):
            raise ValueError(f"{option} must be {type(value)()} for {engine}, got {value}; leave this engine out")
    if (dtype := module.weight_hh_l0.dtype) not in dtypes:
        raise ValueError(f"dtype must be one of {dtypes} for {engine}, got {dtype}; leave this engine out")


def _directions(module: nn.LSTM) -> int:
    return 2 if module.bidirectional else 1


def _native_weights(module: nn.LSTM, layer: int, suffix: str = "") -> list[Tensor]:
    """weight_ih, weight_hh, bias_ih and bias_hh of a direction; zeros where there is no bias."""
    weights = [getattr(module, f"weight_{kind}_l{layer}{suffix}").detach() for kind in ("ih", "hh")]
    if module.bias:
        return weights + [getattr(module, f"bias_{kind}_l{layer}{suffix}").detach() for kind in ("ih", "hh")]
    return weights + [weights[0].new_zeros(weights[0].shape[0])] * 2


def _each_layer(module: nn.LSTM, name: str) -> list[str]:
    """What every layer's part of a whole is called; that of a single layer is the whole."""
    return [name] if module.num_layers == 1 else [f"{name}_l{layer}" for layer in range(module.num_layers)]


def _onnx_layer(module: nn.LSTM, layer: int) -> list[Any]:
    """The operator of a layer, and those that bring its outputs [T, D, N, H] into nn.LSTM's order."""
    from onnx import helper

    x = f"y_l{layer - 1}" if layer else "x"
    y = f"y_l{layer}" if layer < module.num_layers - 1 else "y"
    h0, c0, h_n, c_n = (_each_layer(module, name)[layer] for name in ("h0", "c0", "h_n", "c_n"))
    bias, lengths = f"B_l{layer}" if module.bias else "", ""  # an input left out has no name
    inputs, outputs = [x, f"W_l{layer}", f"R_l{layer}", bias, lengths, h0, c0], [f"apart_l{layer}", h_n, c_n]
    if not module.bidirectional:
        return [
            helper.make_node("LSTM", inputs, outputs, hidden_size=module.hidden_size),
            helper.make_node("Reshape", [outputs[0], "shape"], [y]),
        ]
    return [
        helper.make_node("LSTM", inputs, outputs, hidden_size=module.hidden_size, direction="bidirectional"),
        helper.make_node("Transpose", [outputs[0]], [f"beside_l{layer}"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [f"beside_l{layer}", "shape"], [y]),
    ]


def _onnx_weights(module: nn.LSTM) -> list[Any]:
    """The constants that the operators of all layers name."""
    from onnx import numpy_helper

    # Of a shape that an operator reshapes to, 0 keeps the dimension that is there (T), and -1 is what is left (N).
    constants = {"shape": torch.tensor([0, -1, _directions(module) * module.hidden_size])}
    for layer in range(module.num_layers):
        directions = [_native_weights(module, layer, suffix) for suffix in ("", "_reverse")[: _directions(module)]]
        w_ih, w_hh, b_ih, b_hh = (torch.stack([_onnx_gates(w) for w in kind]) for kind in zip(*directions, strict=True))
        constants |= {f"W_l{layer}": w_ih, f"R_l{layer}": w_hh}
        if module.bias:
            constants[f"B_l{layer}"] = torch.cat([b_ih, b_hh], dim=1)
    return [numpy_helper.from_array(tensor.cpu().numpy(), name) for name, tensor in constants.items()]


def _onnx_gates(weight: Tensor) -> Tensor:
    i, f, g, o = weight.chunk(4)
    return torch.cat([i, o, f, g])


def _by_unit(weight: Tensor) -> Tensor:
    """[4 gates * H, ...] as [H, 4, ...], a unit's gates beside each other."""
    return torch.stack(weight.chunk(4), dim=1)
