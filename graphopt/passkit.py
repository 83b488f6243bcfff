"""Everything a pass needs: `from graphopt.passkit import ...`.

These names are the public interface for passes, ours and anybody's.
"""

from graphopt.errors import PassError, RefusedRewrite, UserError
from graphopt.graph.dataflow import reads
from graphopt.graph.dims import Dim, Sym
from graphopt.graph.facts import SymValue
from graphopt.graph.index import Use
from graphopt.graph.rewriter import Rewriter
from graphopt.graph.schema import COMMUTATIVE_OPS, RANDOM_OPS
from graphopt.graph.view import Array, GraphView
from graphopt.ir import AttributeRef, Body, Constant, Function, Graph, Node, Tensor, Variable
from graphopt.pattern.build import OpPattern, Pattern, PatternBuilder
from graphopt.pattern.match import Match
from graphopt.pipeline.base import Limits, NodePass, Numerics, Part, Pass, PassContext, PatternPass, Watch
from graphopt.pipeline.select import glob_of, is_selected, select_nodes
from graphopt.pipeline.targets import Target

__all__ = [
    "COMMUTATIVE_OPS",
    "RANDOM_OPS",
    "Array",
    "AttributeRef",
    "Body",
    "Constant",
    "Dim",
    "Function",
    "Graph",
    "GraphView",
    "Limits",
    "Match",
    "Node",
    "NodePass",
    "Numerics",
    "OpPattern",
    "Part",
    "Pass",
    "PassContext",
    "PassError",
    "Pattern",
    "PatternBuilder",
    "PatternPass",
    "RefusedRewrite",
    "Rewriter",
    "Sym",
    "SymValue",
    "Target",
    "Tensor",
    "Use",
    "UserError",
    "Variable",
    "Watch",
    "glob_of",
    "is_selected",
    "reads",
    "select_nodes",
]
