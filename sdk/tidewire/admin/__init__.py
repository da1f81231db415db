"""The admin listener: HTTP/1.1 with /metrics and /health.

Imported only when a server has an admin address: it needs prometheus_client.
"""

from tidewire.admin.pages import Pages
from tidewire.admin.thread import AdminThread

__all__ = ["AdminThread", "Pages"]
