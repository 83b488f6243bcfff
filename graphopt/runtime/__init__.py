"""Everything that runs a model. The only package that imports onnxruntime, and only when it must."""
