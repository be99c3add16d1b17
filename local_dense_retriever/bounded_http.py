"""uvicorn's HTTP protocol with a bound on the size of a request's head.

With httptools, uvicorn collects headers of any size before it calls the app. Without it, uvicorn uses h11, which has
its own bound.
"""

from typing import Any

MAX_HEAD_BYTES = 64 << 10  # request line and headers; h11 has the same bound


def http_protocol() -> Any:
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "h11"

    class BoundedProtocol(HttpToolsProtocol):
        _head_bytes = 0  # of a request whose headers have not ended yet
        _in_head = False

        def on_message_begin(self) -> None:
            self._in_head, self._head_bytes = True, 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_head = False
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._in_head and not self.transport.is_closing():
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    self.send_400_response("The request's headers are too large.")

    return BoundedProtocol
