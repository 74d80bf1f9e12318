"""Devices by name.

What it is: the check that a name is a device of this machine.  What it is not: what a device is called
(``provenance.py``).
"""

import re

import torch

from simkv.errors import SimkvError

__all__ = ["check_device"]

_KNOWN = re.compile(r"cpu|cuda(:\d{1,3})?")


def check_device(device: str) -> None:
    """Raises SimkvError for anything but "cpu", and "cuda" or "cuda:NUMBER" where torch can use it."""
    if not _KNOWN.fullmatch(device):
        raise SimkvError(f"device {device!r}: it must be cpu, cuda or cuda:NUMBER")
    if device == "cpu":
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise SimkvError(f"device {device}: this machine has no CUDA device that torch can use")
    number = int(device.partition(":")[2] or 0)
    if number >= count:
        raise SimkvError(f"device {device}: this machine has {count}, numbered from 0")
