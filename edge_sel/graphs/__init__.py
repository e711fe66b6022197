"""The ONNX training-graph compiler: a forward graph in, a training step in standard ONNX ops out."""
