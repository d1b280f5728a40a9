"""TF Lite files: reading them, what their operations say, and computing them."""
