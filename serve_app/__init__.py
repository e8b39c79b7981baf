"""An embedding server that picks, per request, the best variant of a model that meets the budget."""

from __future__ import annotations

__version__ = "0.1.0"
