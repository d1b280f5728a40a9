"""Comparing a PyTorch network with its TensorFlow reference."""
