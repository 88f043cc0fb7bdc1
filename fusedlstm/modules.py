"""The modules: LSTM and LSTMCell, drop-in replacements of torch.nn.LSTM and torch.nn.LSTMCell."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fusedlstm import arguments, functional, memory, ops, tracers
from fusedlstm.arguments import State
from fusedlstm.errors import ArgumentError

_CELL_WEIGHTS = "weight_ih", "weight_hh", "bias_ih", "bias_hh"


class LSTM(nn.LSTM):
    """An ``nn.LSTM`` with fused kernels: the same arguments, parameters, ``state_dict`` and results.

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

    recompute: bool = False  # the default, of modules that replace_lstm has changed too

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
        if recompute:  # a subclass may use the name for something else
            self.recompute = True

    def _get_name(self) -> str:
        return f"fusedlstm.{type(self).__name__}"  # so that the repr of a model shows what was swapped

    def __prepare_scriptable__(self) -> NoReturn:
        tracers.refuse_script("LSTM")

    def extra_repr(self) -> str:
        return super().extra_repr() + (", recompute=True" if self.recompute is True else "")

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels need no common buffer, into which ``nn.LSTM`` moves its parameters."""

    @property  # type: ignore[override]
    def _flat_weights(self) -> tuple[Tensor | None, ...]:
        """The weights by name, in the order of ``parameters()``, instead of the list that ``nn.LSTM`` keeps of them."""
        return tuple(getattr(self, name, None) for name in self._flat_weights_names)

    @_flat_weights.setter
    def _flat_weights(self, weights: Iterable[Tensor | None]) -> None:
        weights, names = list(weights), self._flat_weights_names
        if len(weights) != len(names):
            raise ValueError(f"lstm: _flat_weights must be {len(names)} tensors, as parameters(), got {len(weights)}")
        for name, weight in zip(names, weights, strict=True):
            if weight is not getattr(self, name, None):
                setattr(self, name, weight)

    def _init_flat_weights(self) -> None:
        self._flat_weight_refs = [None] * len(
            self._flat_weights_names
        )  # by them nn.LSTM sees that its list is outdated

    def __setattr__(self, name: str, value: Any) -> None:
        super(nn.RNNBase, self).__setattr__(name, value)  # without RNNBase's, which writes into that list

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
    def forward(  # options by name, as the overloads say; torch.onnx.export(dynamo=False) passes defaults by position
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
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
            RuntimeError: a weight does not fit, a storage was freed, or there is too little memory. The other two are
                of the class that ``nn.LSTM`` raises as well.

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
        if not tracers.is_tracing():
            return _forward(self, input, hx, lengths, resets, return_states)
        with tracers.sizes_may_be_compared():
            if not tracers.in_old_onnx_export():
                return _forward(self, input, hx, lengths, resets, return_states)
            arguments.require_nn_lstms_arguments(lengths, resets, return_states)
            return super().forward(input, hx)  # recorded as torch's LSTM, which the exporter turns into ONNX's

    if TYPE_CHECKING:  # a call is nn.Module's, typed as forward
        __call__ = forward


class LSTMCell(nn.LSTMCell):
    """An ``nn.LSTMCell`` with the fused kernel: one step, the same arguments, parameters and results.

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

    def _get_name(self) -> str:
        return f"fusedlstm.{type(self).__name__}"

    def __prepare_scriptable__(self) -> NoReturn:
        tracers.refuse_script("LSTMCell")

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
            RuntimeError: a weight does not fit, a storage was freed, or there is too little memory. The other two are
                of the class that ``nn.LSTMCell`` raises as well.
        """
        if not tracers.is_tracing():
            return _cell_forward(self, input, hx)
        with tracers.sizes_may_be_compared():
            return super().forward(input, hx) if tracers.in_old_onnx_export() else _cell_forward(self, input, hx)

    if TYPE_CHECKING:  # a call is nn.Module's, typed as forward
        __call__ = forward


# Functions rather than methods: a subclass of the user's may have a method of any name.


def _weights(module: nn.Module, kind: type[nn.Module], names: Iterable[str]) -> list[Tensor]:
    """The attributes of these names; where nothing can hide a parameter, it is read from where attributes end."""
    if type(module) is not kind:
        return [getattr(module, name) for name in names]
    first, last = module.__dict__, module._parameters  # __getattr__ takes a microsecond
    return [last[name] if name in last and name not in first else getattr(module, name) for name in names]  # type: ignore[misc]


def _forward(
    lstm: LSTM, input: Any, hx: Any, lengths: Tensor | None, resets: Tensor | None, return_states: bool
) -> Any:
    weights = _weights(lstm, LSTM, lstm._flat_weights_names)
    if isinstance(input, PackedSequence):
        state = arguments.check_arguments(lstm, input.data, hx, weights[0], input)
        for name, tensor in (("hx[0]", state[0]), ("hx[1]", state[1])):
            memory.check(name, tensor)
        state = lstm.permute_hidden(state, input.sorted_indices)
        output, state = _run(lstm, input, state, weights, lengths, resets, return_states)
        return output, lstm.permute_hidden(state, input.unsorted_indices)

    subclass = type(lstm) is not LSTM  # which may have its own versions of the methods that nn.LSTM calls here
    if subclass and arguments.has_own_checks(type(lstm)):
        state = arguments.check_by_methods(lstm, input, hx)
    else:
        state = arguments.check_arguments(lstm, input, hx, weights[0])
    if subclass and hx is not None:
        state = lstm.permute_hidden(state, None)
    if resets is not None:
        arguments.check_resets(resets, input)
    if input.dim() == 3:
        if lengths is not None:
            N, T = input.shape[:2] if lstm.batch_first else input.shape[1::-1]
            lengths = arguments.check_lengths(lengths, input, N, T)
        results = _run(lstm, input, state, weights, lengths, resets, return_states)
        return (results[0], lstm.permute_hidden(results[1], None), *results[2:]) if subclass else results
    if lengths is not None:
        raise ArgumentError("lstm: lengths must come with a batch, got one sequence; cut it with input[:length]")
    batch_dim = 0 if lstm.batch_first else 1
    resets = None if resets is None else resets.unsqueeze(batch_dim)
    output, last, *states = _run(lstm, input.unsqueeze(batch_dim), state, weights, None, resets, return_states)
    last = last[0].squeeze(1), last[1].squeeze(1)
    last = lstm.permute_hidden(last, None) if subclass else last
    return output.squeeze(batch_dim), last, *((h_all.squeeze(2), c_all.squeeze(2)) for h_all, c_all in states)


def _run(
    lstm: LSTM,
    input: Any,
    state: State,
    weights: list[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    return_states: bool,
) -> Any:
    return functional.lstm(
        input,
        state,
        weights,
        num_layers=lstm.num_layers,
        bidirectional=lstm.bidirectional,
        dropout=lstm.dropout,
        training=lstm.training,
        batch_first=lstm.batch_first,
        lengths=lengths,
        resets=resets,
        return_states=return_states,
        recompute=lstm.recompute is True,  # a subclass may use the name for something else
    )


def _cell_forward(cell: LSTMCell, input: Any, hx: Any) -> State:
    arguments.check_tensor("lstm_cell", "input", input)
    if input.dim() not in (1, 2) or input.shape[-1] != cell.input_size:
        raise ArgumentError(
            f"lstm_cell: input must be [batch, {cell.input_size}] (or [{cell.input_size}] unbatched),"
            f" got {list(input.shape)}"
        )
    weights = _weights(cell, LSTMCell, _CELL_WEIGHTS if cell.bias else _CELL_WEIGHTS[:2])
    arguments.check_like("lstm_cell", "input", input, "the parameters", weights[0])
    batch = input if input.dim() == 2 else input[None]
    shape = (batch.shape[0], cell.hidden_size)
    if hx is None:
        h0 = c0 = input.new_zeros(shape)
    else:
        h0, c0 = arguments.check_state(
            "lstm_cell", hx, input, (shape, shape), batch_dim=None if input.dim() == 2 else 0
        )
    h, c = ops.lstm_step(batch, h0, c0, weights)
    return (h, c) if input.dim() == 2 else (h[0], c[0])


tracers.let_dynamo_trace(LSTM)
tracers.make_fx_leaves(LSTM, LSTMCell)
