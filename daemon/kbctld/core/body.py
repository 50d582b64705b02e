"""The body of a request, read as its vendor reads it.

What must stay true: which reader a body gets follows from the vendor file, the path and the operation alone,
never from what the agent says of it.
"""

from typing import TypeAlias

from kbctld.core.document import Batch, Document, read_batch, read_document
from kbctld.core.form import EMPTY, Form, read_form
from kbctld.core.operation import Operation, Recipients
from kbctld.core.vendor import Vendor

Body: TypeAlias = Form | Document | Batch
"""What was read of a request's body."""


def read_body(vendor: Vendor, path: str, operation: Operation | None, raw: bytes) -> Body:
    """Read one.

    Args:
        vendor: whom it goes to.
        path: canonical.
        operation: what the vendor file calls it.
        raw: its bytes.

    Raises:
        FormError: no form as every reader takes it.
        DocumentError: no such JSON.
    """
    if not raw:
        return EMPTY
    if not vendor.takes_json(path):
        return read_form(raw)
    if operation is not None and isinstance(operation.cost, Recipients) and operation.cost.batch:
        return read_batch(raw)
    return read_document(raw)
