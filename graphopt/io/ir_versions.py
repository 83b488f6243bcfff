"""Which IR version a model needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import onnx
import onnx.helper

from graphopt import ir
from graphopt.io.dtypes import onnx_dtype

# The IR version that element types came with, where it is newer than 4.
_TYPES: Final = {
    name: version
    for version, names in {
        9: "FLOAT8E4M3FN FLOAT8E4M3FNUZ FLOAT8E5M2 FLOAT8E5M2FNUZ",
        10: "UINT4 INT4",
        11: "FLOAT4E2M1",
        12: "FLOAT8E8M0",
        13: "UINT2 INT2",
        14: "FLOAT6E2M3 FLOAT6E3M2",
    }.items()
    for name in names.split()
}


def least_ir_version(graph: ir.Graph, imports: Mapping[str, int], origin: onnx.ModelProto) -> int:
    """The oldest IR version that has the opsets and element types which passes brought in.

    What the model came with does not count: it was written under some IR version, and stays so.

    Args:
        graph: the main body.
        imports: opset imports, domain -> version.
        origin: the model as it was loaded.
    """
    before = {o.domain if o.domain != "ai.onnx" else "": o.version for o in origin.opset_import}
    newer = [
        onnx.helper.make_opsetid(domain, version)
        for domain, version in imports.items()
        if version > before.get(domain, 0)
    ]
    least = onnx.helper.find_min_ir_version_for(newer, ignore_unknown=True)
    for body in ir.bodies(graph):
        for constant in body.initializers:
            if constant.made_by:
                name = onnx.TensorProto.DataType.Name(onnx_dtype(constant._values.dtype))
                least = max(least, _TYPES.get(name, 0))
    return int(least)
