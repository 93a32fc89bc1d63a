"""tinyexp: Hydra-composed experiments for PyTorch image classification."""

__version__ = "0.1.0"
