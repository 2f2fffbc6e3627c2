"""Shapes in fps_flex's annotations, checked at every call: what `pytest --shapes` switches on. Types are for mypy.

jaxtyping's own import hook does the like. It can't import what modules import under TYPE_CHECKING, nor leave out
custom operators, whose schema PyTorch reads off the function, nor tell a wrong annotation from a wrong argument.
"""

import ast
import re
import sys
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder, SourceFileLoader

from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

SHAPED = re.compile(r"\b(Bool|Float|Int|Num|Shaped)\[Tensor")
UNCHECKED = ("custom_op", "register_fake")


def check_shapes():
    """Have fps_flex, which must not be imported yet, checked at every call."""
    assert "fps_flex" not in sys.modules
    sys.meta_path.insert(0, _Finder())


def checked(function):
    """Raises TypeCheckError where arguments or the result aren't as annotated, unless the function refuses them."""
    typed = jaxtyped(typechecker=beartype)(function)
    if isinstance(function, type):
        return typed

    @wraps(function)
    def call(*args, **kwargs):
        try:
            return typed(*args, **kwargs)
        except TypeCheckError:
            function(*args, **kwargs)  # raises what a caller gets for wrong arguments
            raise

    return call


class _Finder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "fps_flex":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = _Loader(name, spec.origin)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module):
        module._checked = checked
        super().exec_module(module)

    def get_code(self, fullname):
        tree = _Checked().visit(ast.parse(self.get_data(self.path), self.path))
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)


def _is_shaped(annotation):
    return annotation is not None and SHAPED.search(ast.unparse(annotation)) is not None


class _Checked(ast.NodeTransformer):
    """Imports for annotations made real; functions and dataclasses with shapes checked, inside other decorators."""

    def visit_Module(self, node):
        for child in node.body:
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                child.test = ast.Constant(True)
        return self.generic_visit(node)

    def visit_ClassDef(self, node):
        shaped = [x for x in node.body if isinstance(x, ast.AnnAssign) and _is_shaped(x.annotation)]
        if shaped:  # a dataclass: first in the list is outermost
            node.decorator_list.insert(0, ast.Name("_checked", ast.Load()))
        return self.generic_visit(node)

    def visit_FunctionDef(self, node):
        a = node.args
        annotated = [x for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if x is not None]
        shaped = _is_shaped(node.returns) or any(_is_shaped(x.annotation) for x in annotated)
        if shaped and not any(name in ast.unparse(x) for x in node.decorator_list for name in UNCHECKED):
            node.decorator_list.append(ast.Name("_checked", ast.Load()))
            for x in annotated:
                x.annotation = x.annotation if _is_shaped(x.annotation) else None
            node.returns = node.returns if _is_shaped(node.returns) else None
        return self.generic_visit(node)
