"""KV memory: pages, pools of them in every tier, copies between pools."""

from __future__ import annotations

from .copier import Copier
from .pages import PageAllocator
from .pool import KVPool, PageShape

__all__ = ["Copier", "KVPool", "PageAllocator", "PageShape"]
