"""Recommendations on a device: numpy alone, neither torch nor anything else of this package.

A device holds the static part of a model, which `solid-ext export --for device` writes once for everybody, and receives
the few kilobytes that make it one person's, which `SOLID.personalize` makes.
"""

from __future__ import annotations

from solid_ext.device.model import DeviceModel, Recommended

__all__ = ["DeviceModel", "Recommended"]
