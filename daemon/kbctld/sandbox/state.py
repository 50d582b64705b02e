"""What the pretend Stripe remembers: objects, idempotency results, the book.

What must stay true: a request changes everything it changes at once. Operations work on copies inside a
`Transaction`; commit hands one line to the book file first and applies it to memory second, so an
operation that fails, and a disk that is full, leave no trace.
"""

from __future__ import annotations

import secrets
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from kbctld.sandbox.book import Book, BookFile, Entry, Line, ObjectLine, ResultLine
from kbctld.sandbox.errors import StripeError
from kbctld.sandbox.form import Form

StripeObject = dict[str, Any]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

# Stripe: "at least 24 hours"; exactly that here, so that a test can step over it.
RESULT_SECONDS = 24 * 3600

_PAGE_DEFAULT = 10
_PAGE_MAX = 100


class Record(NamedTuple):
    kind: str
    position: int
    body: bytes


class Result(NamedTuple):
    fingerprint: str
    status: int
    body: bytes
    request_id: str
    time: float


class State:
    def __init__(self, path: Path | None) -> None:
        self.book = Book()
        self._objects: dict[tuple[str, str], Record] = {}
        self._order: dict[tuple[str, str], list[str]] = {}
        self._results: dict[tuple[str, str], Result] = {}
        self._ages: deque[tuple[float, tuple[str, str]]] = deque()
        self._file = BookFile(path) if path is not None else None
        if self._file is not None:
            try:
                for line in self._file.read():
                    self._apply(line)
            except BaseException:
                self._file.close()
                raise

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def record(self, account: str, object_id: str) -> Record | None:
        return self._objects.get((account, object_id))

    def ids(self, account: str, kind: str) -> list[str]:
        """Oldest first."""
        return self._order.get((account, kind), [])

    def result(self, account: str, key: str, now: float) -> Result | None:
        result = self._results.get((account, key))
        return result if result is not None and now < result.time + RESULT_SECONDS else None

    def write(self, line: Line) -> None:
        if not (line.objects or line.entries or line.result):
            return
        if self._file is not None:
            self._file.append(line)
        self._apply(line)

    def _apply(self, line: Line) -> None:
        for obj in line.objects:
            place = (obj.account, obj.id)
            known = self._objects.get(place)
            if known is None:
                order = self._order.setdefault((obj.account, obj.kind), [])
                position = len(order)
                order.append(obj.id)
            else:
                position = known.position
            self._objects[place] = Record(obj.kind, position, bytes(obj.body))
        for entry in line.entries:
            self.book.add(entry)
        if line.result is not None:
            self._remember(line.result)

    def _remember(self, line: ResultLine) -> None:
        place = (line.account, line.key)
        while self._ages and self._ages[0][0] + RESULT_SECONDS <= line.time:
            _, oldest = self._ages.popleft()
            # The key may have been used again since, under a result that still stands.
            result = self._results.get(oldest)
            if result is not None and result.time + RESULT_SECONDS <= line.time:
                del self._results[oldest]
        self._ages.append((line.time, place))
        self._results[place] = Result(
            line.fingerprint, line.status, bytes(line.body), line.request_id, line.time
        )


class Transaction:
    """One request's view of the state, and what it will change."""

    def __init__(
        self,
        state: State,
        *,
        account: str,
        operation: str,
        now: float,
        request_id: str,
        idempotency_key: str | None,
    ) -> None:
        self._state = state
        self._account = account
        self._operation = operation
        self._time = now
        self._request_id = request_id
        self._idempotency_key = idempotency_key
        self._staged: dict[str, StripeObject] = {}
        self._entries: list[Entry] = []
        self.now = int(now)

    # What operations do.

    def new_id(self, prefix: str) -> str:
        return f"{prefix}_{secrets.token_hex(12)}"

    def put(self, kind: str, obj: StripeObject) -> StripeObject:
        """Stage an object. It is stored as it stands at commit: it may be changed until then."""
        obj.setdefault("object", kind)
        self._staged[obj["id"]] = obj
        return obj

    def find(self, kind: str, object_id: str, param: str = "id") -> StripeObject:
        """A copy of the object; a change to it stays unless it is put."""
        if object_id in self._staged:
            return self._staged[object_id]
        record = self._state.record(self._account, object_id)
        if record is None or record.kind != kind:
            raise StripeError(404, f"No such {kind}: '{object_id}'", code="resource_missing", param=param)
        found: StripeObject = _decode(record.body)
        return found

    def knows(self, object_id: str) -> bool:
        return self._body(object_id) is not None

    def excess(self, payment_intent: StripeObject) -> int:
        return self._state.book.excess(
            payment_intent["id"], payment_intent["currency"], payment_intent["amount"]
        )

    def count(
        self,
        obj: StripeObject,
        amount_minor: int,
        *,
        authorised_minor: int = 0,
        moved_minor: int = 0,
        declined: bool = False,
    ) -> None:
        self._entries.append(
            Entry(
                seq=len(self._state.book.entries) + len(self._entries) + 1,
                time=self._time,
                object=obj["id"],
                kind=self._operation,
                amount_minor=amount_minor,
                currency=obj["currency"],
                authorised_minor=authorised_minor,
                moved_minor=moved_minor,
                declined=declined,
                idempotency_key=self._idempotency_key,
                account=self._account,
                metadata=dict(obj.get("metadata") or {}),
                request_id=self._request_id,
            )
        )

    def entries(self) -> list[Entry]:
        """What the book says of this account, oldest first."""
        return [entry for entry in self._state.book.entries if entry.account == self._account]

    def page(self, kind: str, form: Form, url: str, match: dict[str, str]) -> StripeObject:
        """One page of a list, newest first, by Stripe's cursors."""
        limit = form.integer("limit")
        if limit is None:
            limit = _PAGE_DEFAULT
        if not 1 <= limit <= _PAGE_MAX:
            raise StripeError(
                400, f"limit must be 1 to {_PAGE_MAX}.", code="parameter_invalid_integer", param="limit"
            )
        after, before = form.text("starting_after"), form.text("ending_before")
        if after and before:
            raise StripeError(400, "Give starting_after or ending_before, not both.", param="ending_before")
        ids = self._state.ids(self._account, kind)
        if before:
            # The page nearest to the cursor on its newer side, still newest first.
            positions = range(self._position(kind, before, "ending_before") + 1, len(ids))
        elif after:
            positions = range(self._position(kind, after, "starting_after") - 1, -1, -1)
        else:
            positions = range(len(ids) - 1, -1, -1)
        data: list[StripeObject] = []
        for position in positions:
            record = self._state.record(self._account, ids[position])
            obj: StripeObject = _decode(record.body) if record is not None else {"deleted": True}
            if obj.get("deleted") or any(obj.get(name) != value for name, value in match.items()):
                continue
            data.append(obj)
            if len(data) > limit:
                break
        has_more = len(data) > limit
        data = data[:limit]
        if before:
            data.reverse()
        return {"object": "list", "data": data, "has_more": has_more, "url": url}

    def _position(self, kind: str, object_id: str, param: str) -> int:
        record = self._state.record(self._account, object_id)
        if record is None or record.kind != kind:
            raise StripeError(404, f"No such {kind}: '{object_id}'", code="resource_missing", param=param)
        return record.position

    # What the sandbox does with the outcome.

    def expand(self, answer: StripeObject, paths: list[str]) -> None:
        for path in paths:
            self._expand(answer, path.split("."), path)

    def _expand(self, node: StripeObject, names: list[str], path: str) -> None:
        name, rest = names[0], names[1:]
        value = node.get(name)
        body = self._body(value) if isinstance(value, str) else b""
        if name not in node or body is None:
            raise StripeError(400, f"This property cannot be expanded ({path}).", param="expand")
        if isinstance(value, str):
            # A copy, so that what is expanded in the answer is not expanded in the stored object.
            node[name] = value = _decode(body)
        if rest and isinstance(value, list):
            for item in value:
                self._expand(item, rest, path)
        elif rest and isinstance(value, dict):
            self._expand(value, rest, path)

    def _body(self, object_id: str) -> bytes | None:
        if object_id in self._staged:
            return _encode(self._staged[object_id])
        record = self._state.record(self._account, object_id)
        return record.body if record is not None else None

    def line(self) -> Line:
        """What this request changed, to be written."""
        return Line(
            objects=[
                ObjectLine(self._account, obj["object"], object_id, msgspec.Raw(_encode(obj)))
                for object_id, obj in self._staged.items()
            ],
            entries=self._entries,
        )

    def remember(self, line: Line, key: str, fingerprint: str, status: int, body: bytes) -> None:
        line.result = ResultLine(
            self._account, key, fingerprint, status, msgspec.Raw(body), self._request_id, self._time
        )
