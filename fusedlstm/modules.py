"""The modules: LSTM and LSTMCell, drop-in replacements of torch.nn.LSTM and torch.nn.LSTMCell."""

from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fusedlstm import functional, ops, packing

State = tuple[Tensor, Tensor]

_CELL_OPTIONS = ops.LayerOptions(cpu_autocast=False)


class LSTM(nn.RNNBase):
    """``nn.LSTM`` with fused kernels: the same arguments, parameters, ``state_dict`` and results.

    Differences from ``nn.LSTM``:

    - The backward pass works in eval mode.
    - Second derivatives work, on a slow path in plain torch.
    - A sequence of no steps gives an empty output.
    - Weights are read by name at every call, so parametrizations, weight norm and weight drop take effect.
    - ``forward`` takes the lengths of a padded batch and the steps where segments begin, and can return every state.

    Args:
        input_size: features I of the input.
        hidden_size: hidden units H.
        num_layers: layers, each fed with the output of the one before.
        bias: whether the gates have biases.
        batch_first: whether input and output are [N, T, ...] instead of [T, N, ...]; states are not affected.
        dropout: probability with which, in training, an output of any layer but the last is zeroed.
        bidirectional: whether each layer has a second direction that runs from the end to the start.
        proj_size: if positive, the hidden state is projected to this size P < H.
        device: where the parameters are made.
        dtype: dtype of the parameters: float32, float64, bfloat16 or float16.
        recompute: whether the backward pass recomputes the gates, by products over all steps, instead of keeping
            them; an attribute that may be changed at any time.

    Raises:
        ValueError: a size, ``dropout`` or ``proj_size`` lies outside its range.
        TypeError: an argument has the wrong type.

    Source: ``torch.nn.LSTM``.

    Example:
        >>> lstm = fusedlstm.LSTM(10, 20, num_layers=2)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    recompute: bool = False  # replace_lstm changes the class of a module and does not call __init__

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        recompute: bool = False,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device=device,
            dtype=dtype,
        )
        self.recompute = recompute

    def _get_name(self) -> str:
        return f"fusedlstm.{type(self).__name__}"  # so that the repr of a model shows what was swapped

    def extra_repr(self) -> str:
        return super().extra_repr() + (", recompute=True" if self.recompute else "")

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels need no common buffer, into which ``nn.LSTM`` moves its parameters."""

    @overload
    def forward(
        self,
        input: Tensor,
        hx: State | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_states: Literal[False] = False,
    ) -> tuple[Tensor, State]: ...
    @overload
    def forward(
        self,
        input: Tensor,
        hx: State | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_states: Literal[True],
    ) -> tuple[Tensor, State, State]: ...
    @overload
    def forward(
        self,
        input: Tensor,
        hx: State | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_states: bool,
    ) -> tuple[Tensor, State] | tuple[Tensor, State, State]: ...
    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: State | None = None,
        *,
        lengths: None = None,
        resets: None = None,
        return_states: Literal[False] = False,
    ) -> tuple[PackedSequence, State]: ...
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_states: bool = False,
    ) -> Any:
        """Runs the stack over a sequence.

        Args:
            input: [T, N, I], [N, T, I] with ``batch_first``, [T, I] for one sequence, or a PackedSequence;
                dtype and device of the parameters.
            hx: first states (h_0, c_0) of [num_layers * D, N, P] and [num_layers * D, N, H], without N for
                one sequence; zeros if None. D is 2 if bidirectional, else 1; P is ``proj_size`` or else H.
            lengths: steps of each sequence of a batch, integers [N] from 0 to T in any order and on any device; None
                means T for all. ``input`` is ignored past the end of a sequence, NaN included; the reverse direction
                starts at the last step of each sequence. On a GPU a length out of range is clamped, since checking it
                would need a host synchronisation.
            resets: where a segment of a sequence, such as an episode, begins: bool [T, N], [N, T] with
                ``batch_first``, [T] for one sequence, on the device of ``input``. True at (t, n) zeroes the states of
                sequence n, of every layer, before its step t. No value, not even NaN, and no gradient crosses that
                border. The reverse direction has the same segments and enters each from its end, with states of zero::

                    resets   .  .  1  .  .        segments  a a | b b b
                    forward  hx -> a a | 0 -> b b b -> h_n
                    reverse  h_n <- a a <- 0 | b b b <- hx

                True at t = 0 replaces the forward direction's hx; True past the end of a sequence has no effect.
            return_states: whether the states after every step are returned too.

        Returns:
            The output, [T, N, D*P] or as ``input`` is laid out, and the last states (h_n, c_n), shaped as hx. With
            ``lengths`` the output is zero past the end of a sequence and the last states are those of its last step
            (hx for a sequence of no steps). With ``return_states`` also (h_all, c_all), [num_layers * D, T, N, P] and
            [num_layers * D, T, N, H] whatever ``batch_first`` is (without N for one sequence), zero past the end of a
            sequence. All of them are differentiable.

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: a shape, dtype, device or length does not fit; the text names the argument.

        Example:
            >>> lstm = fusedlstm.LSTM(10, 20, bidirectional=True)
            >>> padded, lengths = torch.randn(7, 3, 10), torch.tensor([4, 7, 0])
            >>> output, (h_n, c_n), (h_all, c_all) = lstm(padded, lengths=lengths, return_states=True)
            >>> output[4:, 0].any(), c_all.shape
            (tensor(False), torch.Size([2, 7, 3, 20]))

            A rollout of an agent, whose episodes end in mid-sequence. ``done[t]`` says that step t was the last of its
            episode, so the next step begins a new one. The state is carried on into the next rollout:

            >>> lstm, state = fusedlstm.LSTM(10, 20), None
            >>> begins = torch.zeros(3, dtype=torch.bool)
            >>> for _ in range(2):
            ...     observations, done = torch.randn(16, 3, 10), torch.rand(16, 3) < 0.1
            ...     resets = torch.cat([begins[None], done[:-1]])
            ...     output, state = lstm(observations, state, resets=resets)
            ...     begins, state = done[-1], tuple(s.detach() for s in state)

            A long sequence in chunks, the state carried on and the gradient cut (truncated backpropagation):

            >>> state = None
            >>> for chunk in torch.randn(1000, 3, 10).split(100):
            ...     output, state = lstm(chunk, state)
            ...     output.square().mean().backward()
            ...     state = tuple(s.detach() for s in state)
        """
        weights = [getattr(self, name) for name in self._flat_weights_names]
        if isinstance(input, PackedSequence):
            self._check_input(input.data, weights[0], packed=True)
            state = self._initial_state(hx, input.data, packing.batch_size(input, hx), batched=True)
            options = {"lengths": lengths, "resets": resets, "return_states": return_states}
            output, state = self._run(input, self.permute_hidden(state, input.sorted_indices), weights, **options)
            return output, self.permute_hidden(state, input.unsorted_indices)

        self._check_input(input, weights[0], packed=False)
        batch_dim, steps_dim = (0, 1) if self.batch_first else (1, 0)
        if resets is not None:
            _check_resets(resets, input)
        if input.dim() == 3:
            N = input.shape[batch_dim]
            state = self._initial_state(hx, input, N, batched=True)
            if lengths is not None:
                lengths = _check_lengths(lengths, input, N, input.shape[steps_dim])
            return self._run(input, state, weights, lengths=lengths, resets=resets, return_states=return_states)
        if lengths is not None:
            raise ValueError("lstm: lengths must come with a batch, got one sequence; cut it with input[:length]")
        state = self._initial_state(hx, input, 1, batched=False)
        resets = None if resets is None else resets.unsqueeze(batch_dim)
        output, *states = self._run(
            input.unsqueeze(batch_dim), state, weights, resets=resets, return_states=return_states
        )
        # The batch is dimension 1 of (h_n, c_n) and 2 of (h_all, c_all).
        return output.squeeze(batch_dim), *((h.squeeze(dim), c.squeeze(dim)) for dim, (h, c) in enumerate(states, 1))

    if TYPE_CHECKING:  # a call is nn.Module's, typed as forward
        __call__ = forward

    def permute_hidden(self, hx: State, permutation: Tensor | None) -> State:  # type: ignore[override]
        """Reorders the batch of both states, as ``nn.LSTM.permute_hidden`` does."""
        return hx if permutation is None else (hx[0].index_select(1, permutation), hx[1].index_select(1, permutation))

    def _run(self, input: Any, state: State, weights: list[Tensor], **options: Any) -> Any:
        return functional.lstm(
            input,
            state,
            weights,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            training=self.training,
            batch_first=self.batch_first,
            recompute=self.recompute,
            **options,
        )

    def _check_input(self, input: Any, weight: Tensor, packed: bool) -> None:
        _check_tensor("lstm", "input", input)
        if packed:
            layout = f"a PackedSequence of [steps, {self.input_size}] data"
        else:
            first = "batch, steps" if self.batch_first else "steps, batch"
            layout = f"[{first}, {self.input_size}] (or [steps, {self.input_size}] unbatched)"
        if input.dim() not in ((2,) if packed else (2, 3)) or input.shape[-1] != self.input_size:
            raise ValueError(f"lstm: input must be {layout}, got {list(input.shape)}")
        _check_like("lstm", "input", input, "the parameters", weight)

    def _initial_state(self, hx: Any, input: Tensor, batch: int, batched: bool) -> State:
        states = self.num_layers * (2 if self.bidirectional else 1)
        shapes = (states, batch, self.proj_size or self.hidden_size), (states, batch, self.hidden_size)
        if hx is None:
            return input.new_zeros(shapes[0]), input.new_zeros(shapes[1])
        return _check_state("lstm", hx, input, shapes, batch_dim=None if batched else 1)


class LSTMCell(nn.RNNCellBase):
    """``nn.LSTMCell`` with the fused kernel: one step, the same arguments, parameters and results.

    Args:
        input_size: features I of the input.
        hidden_size: hidden units H.
        bias: whether the gates have biases.
        device: where the parameters are made.
        dtype: dtype of the parameters: float32, float64, bfloat16 or float16.

    Source: ``torch.nn.LSTMCell``.

    Example:
        >>> cell = fusedlstm.LSTMCell(10, 20)
        >>> h, c = cell(torch.randn(3, 10))
        >>> h, c = cell(torch.randn(3, 10), (h, c))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def _get_name(self) -> str:
        return f"fusedlstm.{type(self).__name__}"

    def forward(self, input: Tensor, hx: State | None = None) -> State:
        """Runs one step.

        Args:
            input: [N, I], or [I] unbatched; dtype and device of the parameters.
            hx: states (h, c) before the step, each [N, H], or [H] unbatched; zeros if None.

        Returns:
            The states (h, c) after the step, shaped as hx.

        Raises:
            TypeError: ``input`` or ``hx`` is of the wrong type.
            ValueError: a shape, dtype or device does not fit; the text names the argument.
        """
        _check_tensor("lstm_cell", "input", input)
        if input.dim() not in (1, 2) or input.shape[-1] != self.input_size:
            raise ValueError(
                f"lstm_cell: input must be [batch, {self.input_size}] (or [{self.input_size}] unbatched),"
                f" got {list(input.shape)}"
            )
        _check_like("lstm_cell", "input", input, "the parameters", self.weight_ih)
        batch = input if input.dim() == 2 else input[None]
        shape = (batch.shape[0], self.hidden_size)
        if hx is None:
            h0 = c0 = input.new_zeros(shape)
        else:
            h0, c0 = _check_state("lstm_cell", hx, input, (shape, shape), batch_dim=None if input.dim() == 2 else 0)
        weights = [self.weight_ih, self.weight_hh]
        if self.bias:
            weights += [self.bias_ih, self.bias_hh]
        _, h, c, _ = ops.lstm_layer(batch[None], h0[None], c0[None], weights, _CELL_OPTIONS)
        return (h[0], c[0]) if input.dim() == 2 else (h[0, 0], c[0, 0])

    if TYPE_CHECKING:  # a call is nn.Module's, typed as forward
        __call__ = forward


def _check_tensor(function: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got {type(value).__name__}")


def _check_like(function: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.dtype != other.dtype and not ops.autocasts(value, other):
        remedy = f"; use {name}.to({other.dtype})" if other.is_floating_point() else ""
        raise ValueError(
            f"{function}: {name} must have the dtype of {other_name}, {other.dtype}, got {value.dtype}{remedy}"
        )
    _check_device(function, name, value, other_name, other)


def _check_device(function: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(
            f"{function}: {name} must be on the device of {other_name}, {other.device}, got {value.device};"
            f" use {name}.to({str(other.device)!r})"
        )


def _check_lengths(lengths: Any, input: Tensor, N: int, T: int) -> Tensor:
    """lengths as int64 on the device of input; their values are checked only if no host synchronisation is needed."""
    _check_tensor("lstm", "lengths", lengths)
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lstm: lengths must be integers, got {lengths.dtype}; use lengths.long()")
    if list(lengths.shape) != [N]:
        raise ValueError(f"lstm: lengths must be [{N}], one for each sequence of input, got {list(lengths.shape)}")
    if lengths.device.type == "cpu" and N > 0 and not torch.compiler.is_compiling() and not ops.transformed():
        low, high = (int(value) for value in lengths.aminmax())
        if low < 0 or high > T:
            raise ValueError(f"lstm: lengths must be in 0..{T}, the steps of input, got {low if low < 0 else high}")
    converted: Tensor = lengths.to(device=input.device, dtype=torch.int64, non_blocking=True)
    return converted


def _check_resets(resets: Any, input: Tensor) -> None:
    _check_tensor("lstm", "resets", resets)
    if resets.dtype != torch.bool:
        raise TypeError(f"lstm: resets must be bool, got {resets.dtype}; use resets.bool()")
    if resets.shape != input.shape[:-1]:
        raise ValueError(
            f"lstm: resets must be {list(input.shape[:-1])}, one for each step of input, got {list(resets.shape)}"
        )
    _check_device("lstm", "resets", resets, "input", input)


def _check_state(
    function: str, hx: Any, input: Tensor, shapes: tuple[tuple[int, ...], ...], batch_dim: int | None
) -> State:
    """hx as two tensors of the given shapes; if batch_dim is given, hx lacks that dimension and it is inserted."""
    if not isinstance(hx, tuple | list) or len(hx) != 2:
        raise TypeError(f"{function}: hx must be a pair (h_0, c_0) of tensors, got {type(hx).__name__}")
    checked = []
    for index, (value, shape) in enumerate(zip(hx, shapes, strict=True)):
        name = f"hx[{index}]"
        _check_tensor(function, name, value)
        expected = shape if batch_dim is None else shape[:batch_dim] + shape[batch_dim + 1 :]
        if value.shape != expected:
            raise ValueError(f"{function}: {name} must be {list(expected)} for this input, got {list(value.shape)}")
        _check_like(function, name, value, "input", input)
        checked.append(value if batch_dim is None else value.unsqueeze(batch_dim))
    return checked[0], checked[1]
