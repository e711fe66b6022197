"""The operators that a graph of a pack may use: what the exporter emits, and what it copies from a forward graph.

Each computes its output in one pass. There are none that loop, branch, call, hold a graph or draw random numbers, and
none that is there to make a large tensor from a small one, but ``Expand``, ``OneHot`` and ``Pad``, which are needed.
"""

from __future__ import annotations

OPERATORS = frozenset(
    {
        *("Abs", "Add", "And", "ArgMax", "ArgMin", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip"),
        *(
            "Concat",
            "Conv",
            "ConvTranspose",
            "Cos",
            "CumSum",
            "DepthToSpace",
            "DequantizeLinear",
            "Div",
            "Elu",
            "Equal",
        ),
        *(
            "Erf",
            "Exp",
            "Expand",
            "Flatten",
            "Floor",
            "Gather",
            "GatherElements",
            "GatherND",
            "Gemm",
            "GlobalAveragePool",
        ),
        *("GlobalMaxPool", "Greater", "GreaterOrEqual", "GroupNormalization", "HardSigmoid", "HardSwish", "Identity"),
        *("InstanceNormalization", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log"),
        *("LogSoftmax", "MatMul", "Max", "MaxPool", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "OneHot", "Or"),
        *("PRelu", "Pad", "Pow", "QLinearConv", "QuantizeLinear", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceMax"),
        *("ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Round"),
        *("ScatterElements", "ScatterND", "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Size", "Slice", "Softmax"),
        *("Softplus", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh"),
        *("Transpose", "Trilu", "Unsqueeze", "Where", "Xor"),
    }
)
OFFICIAL = OPERATORS | {
    "SoftmaxCrossEntropyLoss",
    *(f"com.microsoft.{op}" for op in ("BatchNormInternal", "InPlaceAccumulatorV2", "Scale", "ConcatTraining")),
    "com.microsoft.SplitTraining",
    *(f"com.microsoft.{op}" for op in ("BiasGelu", "FastGelu", "Gelu", "QuickGelu", "FusedMatMul", "BiasGeluGrad_dX")),
    *(f"com.microsoft.{op}" for op in ("GatherElementsGrad", "GatherGrad", "GatherNDGrad", "SliceGrad")),
    *(
        f"com.microsoft.{op}Grad"
        for op in ("AveragePool", "BatchNormalization", "Conv", "FastGelu", "Gelu", "HardSigmoid", "HardSwish",
                   "LayerNormalization", "LeakyRelu", "LogSoftmax", "MaxPool", "QuickGelu", "Relu", "Sigmoid",
                   "Softmax", "SoftmaxCrossEntropyLoss", "Tanh")
    ),
    *(f"com.microsoft.{op}Grad_13" for op in ("LogSoftmax", "Softmax")),
}  # fmt: skip
"""What the artifacts of onnxruntime-training may use."""
OPTIMIZERS = {"sgd": "com.microsoft.SGDOptimizerV2", "adam": "com.microsoft.AdamWOptimizer"}
"""The one operator of an optimizer model."""
SIZED_BY = {"Expand": 1, "OneHot": 1, "Pad": 1}
"""Operand that tells the size of the output, where it is one."""
