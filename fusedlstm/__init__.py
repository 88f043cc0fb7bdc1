"""A drop-in nn.LSTM for PyTorch with hand-written C++ and CUDA kernels."""

from importlib.metadata import version

from fusedlstm import startup

if startup.is_command():
    startup.exit_on_ctrl_c()

from fusedlstm.functional import lstm
from fusedlstm.modules import LSTM, LSTMCell
from fusedlstm.swap import replace_lstm, restore_lstm

__all__ = ["LSTM", "LSTMCell", "lstm", "replace_lstm", "restore_lstm"]
__version__ = version("fusedlstm")
