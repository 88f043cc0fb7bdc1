"""The stub _C.pyi and the compiled module have the same classes, members, functions and parameters."""

import ast
import inspect
import re
import types
from pathlib import Path

import fusedlstm
from fusedlstm import _C


def _in_stub(statements):
    """What each name is: the members of a class, the parameters of a function, or a property."""
    found = {}
    for node in statements:
        if isinstance(node, ast.ClassDef):
            found[node.name] = _in_stub(node.body)
        elif isinstance(node, ast.AnnAssign):
            found[node.target.id] = "value"
        elif any(ast.unparse(decorator) == "property" for decorator in node.decorator_list):
            found[node.name] = "property"
        else:
            parameters = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
            found[node.name] = [name for name in parameters if name != "self"]
    return found


def _in_module(owner):
    """The same of the module or a class; pybind11 writes a function's signature in the first line of its docstring."""
    found = {}
    for name, value in vars(owner).items():
        if inspect.isclass(value) and not name.startswith("__"):
            found[name] = _in_module(value)
        elif isinstance(value, property):
            found[name] = "property"
        elif isinstance(value, types.WrapperDescriptorType) or "pybind11" in name:
            continue  # pybind11's own, such as the __init__ of a class without a constructor
        elif callable(value):
            parameters = re.findall(r"(\w+): ", value.__doc__.splitlines()[0])
            found[name] = [parameter for parameter in parameters if parameter != "self"]
        elif not name.startswith("__"):
            found[name] = "value"
    return found


def test_the_stub_describes_the_module():
    stub = Path(fusedlstm.__file__).with_name("_C.pyi")
    assert _in_stub(ast.parse(stub.read_text()).body) == _in_module(_C)
