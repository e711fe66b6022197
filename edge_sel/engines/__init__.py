"""Engines that execute one training step: stock ONNX Runtime, torch."""
