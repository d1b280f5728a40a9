"""A SavedModel's signature run node by node in PyTorch: no TensorFlow, float32 or float64."""
