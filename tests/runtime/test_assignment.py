"""Who computes which node: asked of onnxruntime on the CPU, and read from recorded logs of a GPU."""

import os

import pytest
from onnx import parser

from graphopt.model import Model
from graphopt.runtime.assignment import assignment, read
from graphopt.runtime.logs import LogLine, captured, parse
from graphopt.runtime.session import RuntimeFailure, onnxruntime

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

# As onnxruntime 1.31 writes them on a machine with a GPU, at its most verbose.
CUDA_LOG = """\
2026-01-01 10:00:00.1 [I:onnxruntime:, graph_transformer.cc:15 Apply] GraphTransformer X modified: 0 with status: OK
2026-01-01 10:00:00.2 [I:onnxruntime:, cuda_execution_provider.cc:3105 GetCapability] CUDA kernel not found in registries for Op type: MatMulInteger node name: /l/MatMul (quantized)
2026-01-01 10:00:00.2 [I:onnxruntime:, cuda_execution_provider.cc:3160 GetCapability] CUDA kernel not supported. Fallback to CPU execution provider for Op type: LSTM node name: /lstm/LSTM
2026-01-01 10:00:00.2 [I:onnxruntime:, fallback_cpu_capability.cc:170 GetCpuPreferredNodes] ORT optimization- Force fallback to CPU execution for node: /Gather because the CPU execution path is deemed faster than overhead involved with execution on other EPs  capable of executing this node
2026-01-01 10:00:00.3 [I:onnxruntime:, transformer_memcpy.cc:393 AddCopyNode] Add MemcpyFromHost after /l/out (0) for CUDAExecutionProvider
2026-01-01 10:00:00.3 [I:onnxruntime:, transformer_memcpy.cc:393 AddCopyNode] Add MemcpyToHost before x for CUDAExecutionProvider
\x1b[0;93m2026-01-01 10:00:00.3 [W:onnxruntime:, transformer_memcpy.cc:74 ApplyImpl] 2 Memcpy nodes are added to the graph main_graph for CUDAExecutionProvider. It might have negative impact on performance (including unable to run CUDA graph). Set session_options.log_severity_level=1 to see the detail logs before this message.\x1b[m
2026-01-01 10:00:00.4 [V:onnxruntime:, session_state.cc:1578 VerifyEachNodeIsAssignedToAnEp] Node placements
2026-01-01 10:00:00.4 [V:onnxruntime:, session_state.cc:1584 VerifyEachNodeIsAssignedToAnEp]  Node(s) placed on [CPUExecutionProvider]. Number of nodes: 3
2026-01-01 10:00:00.4 [V:onnxruntime:, session_state.cc:1586 VerifyEachNodeIsAssignedToAnEp]   MatMulInteger (/l/MatMul (quantized))
2026-01-01 10:00:00.4 [V:onnxruntime:, session_state.cc:1586 VerifyEachNodeIsAssignedToAnEp]   LSTM (/lstm/LSTM)
2026-01-01 10:00:00.4 [V:onnxruntime:, session_state.cc:1586 VerifyEachNodeIsAssignedToAnEp]   Gather (/Gather)
2026-01-01 10:00:00.4 [V:onnxruntime:, session_state.cc:1584 VerifyEachNodeIsAssignedToAnEp]  Node(s) placed on [CUDAExecutionProvider]. Number of nodes: 4
2026-01-01 10:00:00.4 [V:onnxruntime:, session_state.cc:1586 VerifyEachNodeIsAssignedToAnEp]   Conv (/conv/Conv)
2026-01-01 10:00:00.4 [V:onnxruntime:, session_state.cc:1586 VerifyEachNodeIsAssignedToAnEp]   Relu (/relu/Relu)
2026-01-01 10:00:00.4 [V:onnxruntime:, session_state.cc:1586 VerifyEachNodeIsAssignedToAnEp]   MemcpyFromHost (Memcpy)
2026-01-01 10:00:00.4 [V:onnxruntime:, session_state.cc:1586 VerifyEachNodeIsAssignedToAnEp]   MemcpyToHost (Memcpy_token_1)
2026-01-01 10:00:00.5 [V:onnxruntime:, session_state.cc:193 CreateGraphInfo] SaveMLValueNameIndexMapping
"""

RECORD = [
    (CPU, "MatMulInteger", "/l/MatMul (quantized)"),
    (CPU, "LSTM", "/lstm/LSTM"),
    (CPU, "Gather", "/Gather"),
    (CUDA, "Conv", "/conv/Conv"),
    (CUDA, "BatchNormalization", "/conv/BN"),
    (CUDA, "Relu", "/relu/Relu"),
]


@pytest.mark.parametrize("recorded", [RECORD, None])
def test_a_gpu_with_fallbacks_and_copies(recorded: list[tuple[str, str, str]] | None) -> None:
    found = read(CUDA, parse(CUDA_LOG), recorded, [])
    assert [(n.name, n.cause) for n in found.fallbacks] == [
        ("/l/MatMul (quantized)", "no kernel"),
        ("/lstm/LSTM", "not supported"),
        ("/Gather", "preferred on the CPU"),
    ]
    assert "MatMulInteger" in found.fallbacks[0].reason
    assert found.executed == {CPU: 3, CUDA: 4}
    assert found.copies == ("MemcpyFromHost after /l/out (0)", "MemcpyToHost before x")
    assert found.copy_count == 2
    on_cuda = 3 if recorded else 2
    assert found.counts == {CUDA: on_cuda, CPU: 3}
    assert found.coverage == pytest.approx(on_cuda / (on_cuda + 3))
    assert not any(n.op.startswith("Memcpy") for n in found.nodes)
    assert ("record" in found.source) == (recorded is not None)


def test_copies_that_are_only_counted() -> None:
    lines = [x for x in parse(CUDA_LOG) if "AddCopyNode" not in x.place and "Verify" not in x.place]
    found = read(CUDA, lines, RECORD, [])
    assert (found.copies, found.copy_count) == ((), 2)


def test_all_on_one_provider_without_a_record() -> None:
    line = LogLine(
        0,
        "session_state.cc:1 VerifyEachNodeIsAssignedToAnEp",
        " All nodes placed on [CUDAExecutionProvider]. Number of nodes: 2",
    )
    found = read(CUDA, [line], None, [("Conv", "a"), ("Relu", "b"), ("Add", "c")])
    assert [n.name for n in found.nodes] == ["a", "b", "c"]
    assert found.coverage == 1
    assert found.executed == {CUDA: 2}


def test_a_node_of_which_nothing_is_said() -> None:
    found = read(CUDA, [], [(CPU, "Foo", "n")], [])
    assert (found.nodes[0].cause, found.coverage) == ("unknown", 0)
    assert "does not say" in found.nodes[0].reason


def test_what_a_provider_compiled_as_a_whole() -> None:
    text = CUDA_LOG.replace("Conv (/conv/Conv)", "TRTKernel_graph_1_0")
    found = read(CUDA, parse(text), None, [])
    assert "TRTKernel_graph_1_0" in [n.name for n in found.nodes]


def test_bodies_and_nodes_without_names_on_the_cpu() -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[4,4] x, bool c) => (float[4,4] y) {
            a = MatMul(x, x)
            b = Relu(a)
            y = If (c) <
                then_branch = t () => (float[4,4] u) { v = Neg(b) u = Mul(v, x) },
                else_branch = e () => (float[4,4] w) { w = Abs(b) }
            >
        }"""
    )
    found = assignment(model)
    assert sorted(n.name for n in found.nodes) == ["Abs:w", "If:y", "MatMul:a", "Mul:u", "Neg:v", "Relu:b"]
    assert found.counts == {CPU: 6}
    assert not found.fallbacks
    assert found.copy_count == 0
    assert found.executed == {CPU: 6}


def test_fusions_show_in_what_is_executed_only() -> None:
    model = Model.load("models/digits_cnn.onnx").session_source()
    plain, fused = assignment(model, optimize="none"), assignment(model)
    assert len(plain.nodes) == plain.executed[CPU] > fused.executed[CPU]
    assert fused.coverage == 1


def test_a_model_that_does_not_load_is_a_failure_and_the_log_is_left_as_it_was() -> None:
    with pytest.raises(RuntimeFailure):
        assignment(
            parser.parse_model(
                '<ir_version: 8, opset_import: ["":17, "foo":1]> g(float[2] a) => (float[2] y) { y = foo.Bar(a) }'
            )
        )
    with captured(onnxruntime()) as lines:
        pass
    assert lines == []


def test_captures_within_each_other() -> None:
    ort = onnxruntime()
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["":17]> g(float[2] a) => (float[2] y) { y = Neg(a) }'
    )
    with captured(ort) as outer:
        assignment(model)
    assert any("placed on" in line.text for line in outer)


def test_without_a_callback_stderr_is_read_and_what_is_not_onnxruntimes_passes(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Old:
        """An onnxruntime before 1.32."""

    with captured(Old()) as lines:
        os.write(2, CUDA_LOG.encode())
        os.write(2, b"somebody else\n")
    assert lines == parse(CUDA_LOG)
    assert len(lines) > 10
    assert capfd.readouterr().err == "somebody else\n"
