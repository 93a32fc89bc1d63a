"""Our own networks. Torchvision's are in zoo.py, imported only when asked, since torchvision takes a second."""

from tinyexp.models.lenet import LeNet5, LeNet6

__all__ = ["LeNet5", "LeNet6"]
