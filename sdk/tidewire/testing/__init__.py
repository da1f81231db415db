"""For the tests of those who use Tidewire: real servers, fakes, faults.

`import tidewire as tw` is enough: `tw.testing` is imported when it is first used.
Nothing here needs a test framework; pytest_tidewire has fixtures.
"""

from tidewire.testing.faces import Faces
from tidewire.testing.failing import Failing
from tidewire.testing.faked import Faked, Received, fake
from tidewire.testing.leaks import unclosed
from tidewire.testing.proxy import Connection, Proxy, faults
from tidewire.testing.served import AsyncServed, Served, serve

__all__ = [
    "AsyncServed",
    "Connection",
    "Faces",
    "Failing",
    "Faked",
    "Proxy",
    "Received",
    "Served",
    "fake",
    "faults",
    "serve",
    "unclosed",
]
