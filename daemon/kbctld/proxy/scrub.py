"""Keeps the real secret out of answers, in every disguise that a vendor's echo could give it.

What must stay true: a needle is found wherever the pieces of a stream are cut, and no byte that could
begin one leaves before that is known; everything else passes without delay.
"""

import base64
import json
import re
from urllib.parse import quote


class Scrubber:
    """What to look for in the answers to requests that carried one secret."""

    def __init__(self, secret: str) -> None:
        raw = secret.encode()
        needles = {raw, raw.upper(), raw.lower(), raw.hex().encode(), raw.hex().upper().encode()}
        needles.add(quote(secret, safe="").encode())
        needles.add(json.dumps(secret)[1:-1].encode())
        needles.add("".join(f"%{byte:02X}" for byte in raw).encode())
        needles.add("".join(f"%{byte:02x}" for byte in raw).encode())
        for lead in (b"", b"x", b"xx"):
            # Within longer base64 text the secret starts at any of three offsets; its first and last
            # characters depend on the neighbours, the middle does not.
            text = base64.b64encode(lead + raw)
            skip = 0 if not lead else len(lead) + 1
            needles.add(text[skip : len(text) - 4])
            needles.add(base64.urlsafe_b64encode(lead + raw)[skip : len(text) - 4])
        # Shorter texts would be found everywhere; no vendor's secret is that short.
        kept = sorted((needle for needle in needles if len(needle) >= 8), key=len, reverse=True)
        self._needles = kept
        self._pattern = re.compile(b"|".join(map(re.escape, kept))) if kept else None
        self._longest = len(kept[0]) if kept else 0

    def finds(self, data: bytes) -> bool:
        """Whether the secret stands in here, whole."""
        return self._pattern is not None and self._pattern.search(data) is not None

    def stream(self) -> "ScrubbedStream":
        return ScrubbedStream(self)

    def tail(self, data: bytes) -> int:
        """How many of the last bytes could be the beginning of a needle."""
        window = data[-(self._longest - 1) :] if self._longest > 1 else b""
        best = 0
        for needle in self._needles:
            start = window.find(needle[:1])
            while start >= 0:
                rest = len(window) - start
                if rest <= best:
                    break
                if needle.startswith(window[start:]):
                    best = rest
                    break
                start = window.find(needle[:1], start + 1)
        return best


class ScrubbedStream:
    """One answer's body, piece by piece."""

    def __init__(self, scrubber: Scrubber) -> None:
        self._scrubber = scrubber
        self._kept = b""
        self.found = False

    def feed(self, piece: bytes) -> bytes:
        """What may pass now; sets ``found`` and passes nothing when the secret came by."""
        data = self._kept + piece
        if self.found or self._scrubber.finds(data):
            self.found = True
            return b""
        keep = self._scrubber.tail(data)
        self._kept = data[len(data) - keep :] if keep else b""
        return data[: len(data) - keep] if keep else data

    def rest(self) -> bytes:
        """What was kept back, at the end of the body."""
        kept, self._kept = self._kept, b""
        return b"" if self.found else kept
